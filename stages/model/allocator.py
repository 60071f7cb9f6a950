"""glibc's allocator, told to keep what it has: training frees and asks for the same large blocks at every step."""

import ctypes
import sys

# malloc.h: M_TRIM_THRESHOLD and M_MMAP_THRESHOLD; the largest int stands for "never give back".
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD, _NEVER = -1, -3, 2**31 - 1


def keep_freed_memory() -> None:
    """Stop returning freed blocks to the system, which would fault every page in again; no-op without glibc."""
    if sys.platform == "linux":
        mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
        if mallopt is not None:
            mallopt(_M_MMAP_THRESHOLD, _NEVER)
            mallopt(_M_TRIM_THRESHOLD, _NEVER)
