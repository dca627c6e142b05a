"""Settings of the memory allocator for training."""

from __future__ import annotations

import ctypes
import gc
import os

# glibc's malloc.h
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_LARGEST_BLOCKS = (1 << 30, 1 << 25)  # glibc before 2.35 refuses the first
_NEVER = 2**31 - 1


def prepare_memory() -> None:
    """Keep freed memory for the next step, and put large tensors on huge pages.

    A training step needs the same megabytes as the step before; returning them to the system and
    fetching them again would cost a page fault per 4 KiB. Also exempt all objects that exist now
    from garbage collection. Call this after the imports and before the first tensor is made. The
    memory settings have no effect without glibc and Linux.
    """
    gc.freeze()
    # torch reads it at its first allocation.
    os.environ["THP_MEM_ALLOC_ENABLE"] = os.environ.get("THP_MEM_ALLOC_ENABLE") or "1"
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return
    if any(mallopt(_M_MMAP_THRESHOLD, size) for size in _LARGEST_BLOCKS):
        mallopt(_M_TRIM_THRESHOLD, _NEVER)
