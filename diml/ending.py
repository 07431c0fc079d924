"""What the end of a program means for its job: the verdict on an error, and ways out past `with`.

Owns exit status and words for whatever leaves a job, and the hooks of the interpreter that notice
the end of a program that never left its job: one without a `with` block, or without Rabit's
`finalize`. Must not know how ranks leave: that is `Job.__exit__`.

Invariant: no rank's interpreter ends while its job is open, so that the others do not wait for it.
"""

from __future__ import annotations

import atexit
import os
import sys
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

from diml.errors import DimlError, JobEnded, status_of

if TYPE_CHECKING:
    from diml.world.world import World

INTERRUPTED = 130
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
    return 1, "".join(traceback.format_exception(error)).rstrip()


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
