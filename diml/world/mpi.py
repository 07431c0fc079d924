"""COMM_WORLD at the start, and its violent end.

Must not know roles. Invariant: MPI's errors are returned, never fatal.
"""

from __future__ import annotations

from mpi4py import MPI


def world_comm() -> MPI.Intracomm:
    """COMM_WORLD with errors returned instead of fatal."""
    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)
    MPI.COMM_SELF.Set_errhandler(MPI.ERRORS_RETURN)
    return MPI.COMM_WORLD


def abort(status: int) -> None:
    """End every process of the job at once, the last resort."""
    MPI.COMM_WORLD.Abort(status)
