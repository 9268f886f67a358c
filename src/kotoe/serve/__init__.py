"""`kotoe serve`: pictures over HTTP, for people by a page, for their programs by two APIs that these know."""
