"""Start MPI once, in the way that survives, and find out who shares this host.

Owns the import of mpi4py's MPI module and its settings, which must be made before that import.
Must not know roles.

Invariants: MPI_Finalize is never called (with most of the world dead it hangs, and with spawned
ranks it can crash); errors are returned, never fatal.
"""

from __future__ import annotations

import os
import socket

import mpi4py

mpi4py.rc.finalize = False
mpi4py.rc.thread_level = "multiple"

from mpi4py import MPI  # noqa: E402  (the settings above count only before this import)


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
