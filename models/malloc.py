"""What the C allocator does with freed memory, where it is glibc; elsewhere nothing is changed."""

import ctypes

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # mallopt's parameters in malloc.h


def keep_freed_memory() -> None:
    """Keep freed memory in this process; by default large blocks go back to the system.

    Each step frees and allocates the same tens of megabytes; the page faults were a tenth of its time.
    """
    try:
        libc = ctypes.CDLL(None)
        libc.mallopt(_M_MMAP_THRESHOLD, 32 << 20)  # the largest that glibc accepts
        libc.mallopt(_M_TRIM_THRESHOLD, 1 << 30)
    except (OSError, AttributeError):
        return


def return_freed_memory() -> None:
    """Give freed memory back to the system, that between blocks in use too, which glibc keeps by itself."""
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError):
        return
