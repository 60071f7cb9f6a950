"""glibc's allocator, told to keep what it has: training frees and asks for the same large blocks at every step."""

import ctypes
import mmap
import os
import sys

# malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_HUGE = 2 << 20
"""Bytes of a huge page on x86-64; where pages are larger the hint is ignored."""


def keep_freed_memory(expected: int = 0) -> None:
    """Stop returning freed blocks to the system, which would fault every page in again; no-op without glibc.

    The first `expected` bytes are asked for in huge pages: a hundredth of the page faults.
    """
    # Every step has shapes of its own; the products that oneDNN keeps for old ones would cut the heap to pieces.
    os.environ.setdefault("ONEDNN_PRIMITIVE_CACHE_CAPACITY", "128")
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    if libc is None or not hasattr(libc, "mallopt"):
        return
    libc.mallopt(_M_MMAP_MAX, 0)
    libc.mallopt(_M_TRIM_THRESHOLD, -1)
    libc.malloc.restype = ctypes.c_void_p
    libc.malloc.argtypes = [ctypes.c_size_t]
    libc.free.argtypes = [ctypes.c_void_p]
    libc.madvise.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
    block = libc.malloc(expected) if expected > 2 * _HUGE else None
    if block:  # not a page of it is in use yet: it is the top of the heap once it is freed
        start = -(-block // _HUGE) * _HUGE
        libc.madvise(start, (block + expected - start) // _HUGE * _HUGE, mmap.MADV_HUGEPAGE)
        libc.free(block)
