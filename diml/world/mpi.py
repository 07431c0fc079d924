"""The ground of a job: COMM_WORLD at the start or what an outer job lends, and its violent end.

Must not know roles. Invariants: MPI's errors are returned, never fatal; what is lent is given back
with nothing of the inner job left running.
"""

from __future__ import annotations

import contextlib
import os
import signal
from collections.abc import Callable, Iterator

from mpi4py import MPI

from diml.errors import DimlError
from diml.world.launch import end_siblings_soon


class _Loan:
    """A communicator that an outer job lends, and what to do when it comes back."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm = comm
        self.at_return: list[Callable[[], None]] = []
        self.at_failure: list[Callable[[], None]] = []


_loan: _Loan | None = None


def world_comm() -> MPI.Intracomm:
    """COMM_WORLD, or what is lent, with errors returned instead of fatal."""
    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)
    MPI.COMM_SELF.Set_errhandler(MPI.ERRORS_RETURN)
    return MPI.COMM_WORLD if _loan is None else _loan.comm


def lent() -> bool:
    """Whether this process runs a job inside of another one, on ranks that are lent to it."""
    return _loan is not None


@contextlib.contextmanager
def lend(comm: MPI.Intracomm) -> Iterator[None]:
    """Let the one job that is begun inside the block run on `comm` instead of COMM_WORLD."""
    global _loan
    loan = _loan = _Loan(comm)
    try:
        yield
    except BaseException:
        # Those who wait for this process, which has left, hear of it in no other way.
        for step in loan.at_failure:
            with contextlib.suppress(DimlError):
                step()
        raise
    finally:
        _loan = None
        for step in loan.at_return:
            step()


def at_return(*steps: Callable[[], None]) -> None:
    """Where the job runs on lent ranks, call these once they are given back."""
    if _loan is not None:
        _loan.at_return.extend(steps)


def at_failure(step: Callable[[], None]) -> None:
    """Where the job runs on lent ranks, call this if this process leaves it in error."""
    if _loan is not None:
        _loan.at_failure.append(step)


def abort(status: int) -> None:
    """End every process of the job at once, the last resort; on lent ranks this process alone,
    whose death then is the outer job's to survive.

    Open MPI 5.0 stops at the first process that has gone already, and leaves the others to
    themselves: those of this host are killed from here. Not before mpirun has heard of the abort,
    or it knows no status of the job.
    """
    if _loan is not None:
        os.kill(os.getpid(), signal.SIGKILL)
    end_siblings_soon()
    MPI.COMM_WORLD.Abort(status)
