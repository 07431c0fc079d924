"""Message buffers without page faults, and short sleeps that are short.

Owns one setting of the C library and one of the system. A message of a megabyte is allocated and
freed thousands of times a second; glibc gives such memory back to the system at once, and every
page of the next buffer is faulted in anew, which was measured at more than the copy itself.
"""

from __future__ import annotations

import ctypes
import sys

# From malloc.h. 32 MiB is the largest threshold that glibc takes.
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_MMAP_THRESHOLD_BYTES = 32 << 20
_TRIM_THRESHOLD_BYTES = 256 << 20
# From sys/prctl.h.
_PR_SET_TIMERSLACK = 29
_SLACK_NS = 1000


def keep_freed_memory() -> bool:
    """Let this process keep up to 256 MiB of freed memory; False where the C library is another."""
    if not sys.platform.startswith("linux"):
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    settings = (
        (_M_MMAP_THRESHOLD, _MMAP_THRESHOLD_BYTES),
        (_M_TRIM_THRESHOLD, _TRIM_THRESHOLD_BYTES),
    )
    return all(mallopt(name, value) == 1 for name, value in settings)


def wake_promptly() -> bool:
    """Let this thread's sleeps end when they should; False where the system is another one.

    Linux adds up to 50 microseconds, as much as the sleep between two looks for a message: the
    mean of such a sleep was 127 microseconds, and is 73.
    """
    if not sys.platform.startswith("linux"):
        return False
    return bool(ctypes.CDLL(None).prctl(_PR_SET_TIMERSLACK, _SLACK_NS, 0, 0, 0) == 0)
