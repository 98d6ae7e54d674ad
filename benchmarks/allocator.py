"""glibc's allocator as a plain process has it, and as the stages set it (`plumbline.process.keep_freed_memory`)."""

import ctypes
import sys

from plumbline.process import keep_freed_memory

M_TRIM_THRESHOLD, M_MMAP_THRESHOLD = -1, -3
# Where glibc's self-adjusting thresholds end up once a process has freed large blocks.
LARGEST_DYNAMIC = 32 * 1024**2


def plain() -> None:
    """Blocks over 32 MB are mapped and unmapped at each use, as in a process that sets nothing."""
    if sys.platform.startswith("linux"):
        libc = ctypes.CDLL(None)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_DYNAMIC)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_DYNAMIC)
        libc.malloc_trim(0)


def kept() -> None:
    """Freed blocks are reused, as in every stage."""
    keep_freed_memory()
