"""What the end of a program means for its job: the verdict on an error, and ways out past `with`.

Owns exit status and words for whatever leaves a job or a command, and the hooks of the interpreter
that notice the end of a program that never left its job: one without a `with` block, or without
Rabit's `finalize`. Must not know how ranks leave: that is `Job.__exit__`.

Invariant: no rank's interpreter ends while its job is open, so that the others do not wait for it.
"""

from __future__ import annotations

import atexit
import errno
import os
import resource
import select
import stat
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from diml.errors import DimlError, JobEnded, status_of

if TYPE_CHECKING:
    from diml.world.world import World

INTERRUPTED = 130
_REFUSED = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EPIPE)
_owner = 0  # the process that the hooks are of: a fork's end is no end of the job


class _Leaving(Protocol):
    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
        /,
    ) -> None: ...


def verdict(error: BaseException, world: World) -> tuple[int, str]:
    """Exit status and words for what left the `with` block."""
    if isinstance(error, DimlError):
        return status_of(error, world.resumable()), f"diml: {error}"
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED, ""
    if isinstance(error, SystemExit):
        if isinstance(error.code, int):
            return error.code, ""
        return 1, str(error.code)
    if (refused := output_refused(error)) is not None:
        return 1, f"diml: {refused}"
    return 1, "".join(traceback.format_exception(error)).rstrip()


def output_refused(error: BaseException) -> str | None:
    """What to say of an error that is stdout's (a full disk, a reader that has gone); else None.

    What stdout has not taken is given up, or the end of the interpreter would fail of it as well.
    """
    if not isinstance(error, OSError) or error.filename or error.errno not in _REFUSED:
        return None
    try:
        # What it has not taken it still has, and fails of again; unless nothing is kept back (-u).
        sys.stdout.flush()
        refuses = _refuses(sys.stdout.fileno())
    except OSError:
        refuses = True
    if not refuses:
        return None  # files that the program writes fail in the same words
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return f"cannot write the output: {error.strerror}"


def _refuses(file: int) -> bool:
    """Whether what is written there is lost; found out without writing where somebody reads it."""
    mode = os.fstat(file).st_mode
    if stat.S_ISREG(mode):
        limit = resource.getrlimit(resource.RLIMIT_FSIZE)[0]
        full = os.fstatvfs(file).f_bavail == 0
        return full or (limit != resource.RLIM_INFINITY and os.fstat(file).st_size >= limit)
    if stat.S_ISCHR(mode) and not os.isatty(file):
        os.write(file, b"\n")
        return False
    poll = select.poll()
    poll.register(file, 0)
    return bool(poll.poll(0))


def watch_exit(current: Callable[[], _Leaving | None]) -> None:
    """Leave the job that `current` gives when the interpreter ends, if it is still open then.

    An uncaught exception ends all ranks, as one inside the block does; an end without one is an
    orderly leaving, where a rank that comes to it alone differs from the others' next call.
    """
    global _owner
    if _owner == os.getpid():
        return
    _owner = os.getpid()
    before = sys.excepthook

    def failed(
        kind: type[BaseException], error: BaseException, trace: TracebackType | None
    ) -> None:
        _leave(current(), kind, error, trace)
        before(kind, error, trace)

    sys.excepthook = failed
    atexit.register(lambda: _leave(current(), None, None, None))


def _leave(
    job: _Leaving | None,
    kind: type[BaseException] | None,
    error: BaseException | None,
    trace: TracebackType | None,
) -> None:
    if job is None or JobEnded.come or os.getpid() != _owner:
        return
    try:
        job.__exit__(kind, error, trace)
    except SystemExit as end:
        sys.stdout.flush()
        sys.stderr.flush()
        # The interpreter would leave with a status of its own from here.
        os._exit(end.code if isinstance(end.code, int) else 1)
