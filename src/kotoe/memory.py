"""How this process has memory from the system, where that makes networks quicker. Of a whole process: a library's user
is asked, and nothing here is done by itself."""

from __future__ import annotations

import ctypes
import os
import platform

M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3  # of glibc's mallopt


def large_pages() -> None:
    """Have torch ask Linux for pages of 2 MiB where a tensor fills one: weights are read a third faster, and steps take
    a few percent less. To be called before the first such tensor. Of a whole process, as `keep_memory` is; what the
    environment already says stays."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")


def keep_memory() -> None:
    """Have this process keep the memory that it frees, as far as its C library is glibc.

    Otherwise each layer's result of some megabytes is given back to the system, and the next one's is had from it page
    by page, cleared. To be called once the weights are laid out. Of a whole process, so a library's user is asked: the
    command line does it.
    """
    if platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        for parameter, value in ((M_MMAP_THRESHOLD, 2**30), (M_TRIM_THRESHOLD, 2**31 - 1), (M_TOP_PAD, 2**26)):
            libc.mallopt(parameter, value)
