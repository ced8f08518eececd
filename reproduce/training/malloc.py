"""Keep freed memory in the process: on CPU, page faults of large tensors cost up to a third of a step."""

from __future__ import annotations

import ctypes
import sys

# glibc's <malloc.h>
M_TRIM_THRESHOLD, M_TOP_PAD, M_MMAP_THRESHOLD = -1, -2, -3
GIBIBYTE = 2**30


def keep_freed_memory() -> bool:
    """Tell glibc to serve tensors of up to a gibibyte from its heap, and not to hand freed memory back.

    By default it maps each large block anew and unmaps it when freed, so every step touches fresh pages that the
    kernel has to zero. Numbers do not change. Returns whether the allocator took the settings; on other C
    libraries nothing happens.
    """
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        return False
    settings = ((M_MMAP_THRESHOLD, GIBIBYTE), (M_TRIM_THRESHOLD, -1), (M_TOP_PAD, GIBIBYTE // 16))
    return all([mallopt(name, value) == 1 for name, value in settings])
