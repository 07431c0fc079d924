"""A program that calls collectives beside the parameter server, in the way that its flag names.

    setup: before it opens the server, and once more behind its last clock.
    open: after opening, before the first clock.
    loop: at the beginning of every third clock, without checkpoints.
    saved: the same, but with a checkpoint every fifth clock, from which a replacement goes on.

The model moves by what the collectives gave and what was read of it, so that its bits at the end
tell whether anything went differently. Prints a digest from each worker.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib

import numpy as np
from numpy.typing import NDArray

import diml
from diml.ps.client import ParameterServer
from diml.ps.table import Table

ROWS = 50


def moved(
    ps: ParameterServer, table: Table, total: float, mine: NDArray[np.float32], keep: bool
) -> NDArray[np.float32]:
    """One clock of the program; returns the worker's own state after it."""
    everything = np.arange(ROWS)
    rows = table.get(everything)
    table.inc(everything, np.float32(0.01) * (total + ps.worker) - np.float32(0.1) * rows)
    time.sleep(0.005)
    mine = mine + rows.mean(axis=0)
    ps.clock(local=mine if keep else None)
    return mine


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("style", choices=["setup", "open", "loop", "saved"])
    parser.add_argument("--clocks", type=int, default=30)
    parser.add_argument("--staleness", type=int, default=0)
    flags = parser.parse_args()
    with diml.init(servers=1) as job:
        total = 0.0
        if flags.style == "setup":
            total = float(job.allreduce(np.array([job.rank + 1.0]), "sum")[0])
        ps = job.parameter_server(flags.staleness)
        if flags.style == "open":
            total = float(job.allreduce(np.array([job.rank + 1.0]), "sum")[0])
        table = ps.table("model", ROWS, 3, "float32", ("uniform", 0, 1))
        mine = np.zeros(3, np.float32) if ps.local is None else ps.local
        if flags.style == "saved":
            version, model, mine_then = job.load_checkpoint()
            total, mine = (0.0, np.zeros(3, np.float32)) if version == 0 else (model, mine_then)
        while ps.clock_now < flags.clocks:
            clock = ps.clock_now
            if clock % 3 == 0 and flags.style in ("loop", "saved"):
                total = float(job.allreduce(np.array([total + clock + ps.worker]), "sum")[0]) / 7
            mine = moved(ps, table, total, mine, flags.style != "saved")
            if flags.style == "saved" and (clock + 1) % 5 == 0:
                job.checkpoint(total, mine)
        ps.barrier()
        digest = zlib.crc32(table.get(np.arange(ROWS)).tobytes())
        same = job.allgather(digest)
        print(f"worker {job.rank} digest {digest} same {same == [digest] * job.size} total {total}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
