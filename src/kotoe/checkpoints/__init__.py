"""Every checkpoint format, to one Bundle and back."""
