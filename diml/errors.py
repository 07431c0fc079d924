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


class CallFailed(PeerFailed):
    """MPI broke a call though nobody need have died: ranks called different things, mostly.

    Recovery compares what they called, and says so if it differs.
    """


def status_of(error: DimlError, resumable: bool) -> int:
    """The exit status for an error: a job that gives up leaves to be resumed, where it can be."""
    return Resumable.exit_status if isinstance(error, GaveUp) and resumable else error.exit_status
