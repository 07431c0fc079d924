"""COMM_WORLD, its end, and which processes share a host.

Owns what is asked of MPI and the system once, at the start or the very end. Must not know roles.
Invariant: MPI's errors are returned, never fatal.
"""

from __future__ import annotations

import os
import socket

from mpi4py import MPI


def world_comm() -> MPI.Intracomm:
    """COMM_WORLD with errors returned instead of fatal."""
    MPI.COMM_WORLD.Set_errhandler(MPI.ERRORS_RETURN)
    MPI.COMM_SELF.Set_errhandler(MPI.ERRORS_RETURN)
    return MPI.COMM_WORLD


def abort(status: int) -> None:
    """End every process of the job at once, the last resort."""
    MPI.COMM_WORLD.Abort(status)


def host_identity() -> str:
    """Processes with the same answer see each other's pids (host name and pid namespace)."""
    try:
        namespace = os.readlink("/proc/self/ns/pid")
    except OSError:
        namespace = ""
    return f"{socket.gethostname()} {namespace}".strip()
