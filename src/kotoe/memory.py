"""How this process has memory from the system, where that makes networks quicker. Of a whole process: a library's user
is asked, and nothing here is done by itself."""

from __future__ import annotations

import ctypes
import os
import platform
from collections.abc import Callable

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
        set_thresholds(ctypes.CDLL(None).mallopt)


def set_thresholds(mallopt: Callable[[int, int], int]) -> int:
    """The size from which on memory is had from the system, and given back to it, each time; 0: nothing was set.

    mallopt: glibc's, which answers 0 to what it refuses. Until 2.34 that is a threshold over 32 MiB. It goes first:
             after any setting glibc no longer raises the 128 KiB of its beginning by itself, and a tensor of megabytes
             takes about ten times as long to have.
    """
    for threshold in (2**30, 2**25):
        if mallopt(M_MMAP_THRESHOLD, threshold):
            mallopt(M_TRIM_THRESHOLD, 2**31 - 1)
            mallopt(M_TOP_PAD, 2**26)
            return threshold
    return 0
