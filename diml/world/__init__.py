"""Who is here: the only package that knows MPI.

Sets how mpi4py starts MPI, here because it counts only before mpi4py.MPI is first imported:
threads may call MPI (the watchdog revokes), and MPI_Finalize is never called (with most of the
world dead it hangs, and with spawned ranks it can crash). Importing this does not start MPI.
"""

from __future__ import annotations

import mpi4py

mpi4py.rc.finalize = False
mpi4py.rc.thread_level = "multiple"
