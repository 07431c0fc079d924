"""What can go wrong, one class a kind, each with the exit status that it ends a job with.

Owns the vocabulary of failure. Knows nothing of MPI. `PeerFailed` never reaches a user: the
framework catches it and recovers. Everything else that leaves a `with diml.init()` block ends
all ranks with `exit_status`, its message printed once.
"""

from __future__ import annotations


class DimlError(Exception):
    """Base of all errors that DiML raises on purpose."""

    exit_status = 1


class Misuse(DimlError):
    """A bad flag, a bad call or bad input: the caller can mend it. One line, exit status 2."""

    exit_status = 2


class PeerFailed(DimlError):
    """A rank died or a communicator was revoked: whoever holds the call goes to recovery."""


class Mismatch(DimlError):
    """Ranks called different collectives, or a replay diverged; names both call sites."""


class DeadlineExceeded(DimlError):
    """A wait outlived its deadline. The message names who is late and where."""


class CorruptState(DimlError):
    """A checkpoint or a replica is damaged, foreign or incomplete."""


class GaveUp(DimlError):
    """Recovery is not possible: a state has no holder, or nobody can take a rank's place."""


class Resumable(GaveUp):
    """Stopped in good order; a durable checkpoint is there to go on from. Exit status 75."""

    exit_status = 75


class Shrunk(GaveUp):
    """Ranks have died, nobody takes their seats, and the job goes on with fewer.

    With `--on-failure shrink` every collective may raise this. The program begins again at
    `load_checkpoint`, with the new `job.rank` and `job.size` (see `Job.elastic`). Left unhandled
    it ends the job.

    Attributes:
        lost: the ranks that are gone, by the numbers that they had when the job began.
        size: how many workers are left.
    """

    def __init__(self, lost: tuple[int, ...], size: int) -> None:
        self.lost, self.size = lost, size
        words = f"rank{'s' if len(lost) > 1 else ''} {', '.join(map(str, lost))} died"
        super().__init__(f"{words}; {size} are left, but the program does not handle diml.Shrunk")


class CallFailed(PeerFailed):
    """MPI broke a call though nobody need have died: ranks called different things, mostly.

    Recovery compares what they called, and says so if it differs.
    """


class JobEnded(SystemExit):
    """The whole job leaves: an error of one rank, or a gap that nothing can fill.

    A SystemExit, so that it passes through a user's `except Exception` and ends the process with
    the status that all the others end with.

    Attributes:
        code: the exit status of every process. The reason has been printed, by one of them.
        come: whether it has come to this process: then there is nobody left to take leave of.
    """

    come = False

    def __init__(self, code: int) -> None:
        super().__init__(code)
        JobEnded.come = True


def status_of(error: DimlError, resumable: bool) -> int:
    """The exit status for an error: a job that gives up leaves to be resumed, where it can be."""
    return Resumable.exit_status if isinstance(error, GaveUp) and resumable else error.exit_status
