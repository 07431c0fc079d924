"""A trial of fault tolerance: three ranks, one kills itself, the others must go on without it.

Run by `diml doctor` under mpirun; it prints one line `recovered in T ms` from a survivor. Owns
nothing else. It uses MPI directly, so that it tells what this MPI does, not what DiML makes of it.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import time

DEADLINE_S = 25


def main() -> None:
    """Die (rank 1), or recover and print how long that took; ends the process."""
    # With the default action, set before MPI starts: it also ends a rank stuck inside MPI.
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(DEADLINE_S)
    import mpi4py

    mpi4py.rc.finalize = False
    from mpi4py import MPI

    world = MPI.COMM_WORLD
    world.Set_errhandler(MPI.ERRORS_RETURN)
    rank, size = world.Get_rank(), world.Get_size()
    if size < 3:
        _leave(f"the world has {size} ranks in place of 3", 3)
    started = time.perf_counter()
    try:
        # On several hosts rank 1 may be dead before the others are out of it.
        world.Barrier()
        if rank == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        started = time.perf_counter()
        while True:
            world.allreduce(1)
            time.sleep(0.001)
    except MPI.Exception as error:
        failed = (MPI.ERR_PROC_FAILED, MPI.ERR_PROC_FAILED_PENDING, MPI.ERR_REVOKED)
        if error.Get_error_class() not in failed:
            _leave(f"a death was reported as {error}", 4)
    world.Revoke()
    survivors = world.Shrink()
    survivors.Set_errhandler(MPI.ERRORS_RETURN)
    # Both agreements are needed: that all are well, and that a lone "no" reaches everyone.
    agreed = survivors.Agree(1) == 1 and survivors.Agree(int(rank == 0)) == 0
    living = survivors.allreduce(1)
    if survivors.Get_size() != 2 or not agreed or living != 2:
        _leave(f"{survivors.Get_size()} survivors, agreed: {agreed}", 5)
    if survivors.Get_rank() == 0:
        print(f"recovered in {1e3 * (time.perf_counter() - started):.1f} ms", flush=True)
    # Between hosts one may hear of the other's end before it is out of this itself.
    with contextlib.suppress(MPI.Exception):
        survivors.Agree(1)
    os._exit(0)


def _leave(reason: str, status: int) -> None:
    print(reason, file=sys.stderr, flush=True)
    os._exit(status)


if __name__ == "__main__":
    main()
