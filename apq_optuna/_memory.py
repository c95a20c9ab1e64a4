"""Large buffers of the C library, kept from step to step instead of faulted in anew.

glibc maps every block beyond 32 MiB by itself, and gives the end of its heap back when more than
some hundred KiB of it are free. A training step frees and asks for hundreds of MiB, so the kernel
clears pages all the time: more than a quarter of a step on two cores. Two settings end it.
"""

from __future__ import annotations

import ctypes
import os
import sys
from functools import cache

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
"""Names of glibc's `malloc.h`."""

KEPT = 1 << 30
"""Free bytes at the heap's end that are kept, and the largest block that comes from the heap."""

SETTINGS = ("MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_", "GLIBC_TUNABLES", "LD_PRELOAD")
"""Variables by which a user has decided, or brought another allocator."""


@cache
def keep_buffers() -> bool:
    """Has the process keep its large buffers, once; whether it does so.

    Only glibc has these settings. `APQ_KEEP_BUFFERS=0` leaves them as they are, and so do the
    variables in `SETTINGS`.
    """
    if sys.platform != "linux" or os.environ.get("APQ_KEEP_BUFFERS") == "0":
        return False
    if any(os.environ.get(name) for name in SETTINGS):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):  # another C library
        return False
    return bool(mallopt(M_MMAP_THRESHOLD, KEPT)) and bool(mallopt(M_TRIM_THRESHOLD, KEPT))
