"""A program for drills: workers count in integers and move a model by what they read.

Every worker adds ones to drawn rows of its own column, so that the sum tells whether each update
was applied exactly once; and moves a float table by functions of what it has read, so that at
staleness 0 the bits at the end tell whether anything at all went differently. Prints the clock of
worker 0 as it goes, and from each worker a digest at the end.
"""

from __future__ import annotations

import argparse
import sys
import time
import zlib
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

import diml

ROWS = 200
HELD_AT = 10
# Columns of a sparse table in which each worker counts in one.
CELLS = 10**9


def drawn(worker: int, clock: int) -> NDArray[np.int64]:
    """Rows that a worker counts in a clock: the same in every life."""
    return np.random.default_rng((worker, clock)).integers(0, ROWS, 40)


def expected(workers: int, clocks: int) -> NDArray[np.int64]:
    """What the counting table holds at the end."""
    counts = np.zeros((ROWS, workers), np.int64)
    for worker, clock in np.ndindex(workers, clocks):
        np.add.at(counts[:, worker], drawn(worker, clock), 1)
    return counts


def let_others_read(worker: int, workers: int, clock: int, ahead: int) -> None:
    """At HELD_AT worker 0 waits until the others have read at a clock so much later."""
    if worker and clock == HELD_AT + ahead:
        Path(f"read-{worker}").touch()
    while worker == 0 and clock == HELD_AT and len(list(Path().glob("read-*"))) < workers - 1:
        time.sleep(0.005)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--staleness", type=int, default=0)
    parser.add_argument("--consistency")
    parser.add_argument("--cache", type=int, help="rows of each table that a worker keeps")
    parser.add_argument("--filters", nargs="*", default=[])
    parser.add_argument("--clocks", type=int, default=60)
    parser.add_argument("--pause", type=float, default=0.0, help="seconds of computing a clock")
    parser.add_argument(
        "--ahead", type=int, help="worker 0 waits once, for reads so many clocks on"
    )
    flags = parser.parse_args()
    everything = np.arange(ROWS)
    with diml.init(servers=1) as job:
        ps = job.parameter_server(
            flags.staleness,
            consistency=flags.consistency,
            row_cache_size=flags.cache,
            filters=flags.filters,
        )
        count = ps.table("count", ROWS, ps.workers, "int64")
        model = ps.table("model", ROWS, 3, "float32", ("uniform", 0, 1))
        cells = ps.table("cells", ROWS, CELLS, "int64", sparse=True)
        mine = np.zeros(3, np.float32) if ps.local is None else ps.local
        for clock in range(ps.clock_now, flags.clocks):
            rows = model.get(everything)
            if flags.ahead is not None:
                let_others_read(ps.worker, ps.workers, clock, flags.ahead)
            mine = mine + rows.mean(axis=0)
            model.inc(everything, np.float32(0.01) * mine - np.float32(0.1) * rows)
            time.sleep(flags.pause)
            ids = drawn(ps.worker, clock)
            ones = np.zeros((len(ids), ps.workers), np.int64)
            ones[:, ps.worker] = 1
            count.inc(ids[:10], ones[:10])
            count.inc(ids[10:], ones[10:])
            columns = np.full(len(ids), CELLS - 1 - ps.worker)
            shape = (len(ids), CELLS)
            cells.inc_sparse(
                ids, sp.csr_array((ones[:, 0] | 1, (np.arange(len(ids)), columns)), shape)
            )
            ps.clock(local=mine)
            if ps.worker == 0:
                print(f"clock {clock + 1}", flush=True)
        ps.barrier()
        counted = expected(ps.workers, flags.clocks)
        wrong = int(np.abs(count.get(everything) - counted).sum())
        found = cells.get_sparse(everything).tocoo()
        for row, column, number in zip(*found.coords, found.data, strict=True):
            counted[row, CELLS - 1 - column] -= number
        wrong += int(np.abs(counted).sum())
        digest = zlib.crc32(model.get(everything).tobytes())
        print(f"worker {ps.worker} digest {digest} wrong {wrong} seen {max(ps.staleness_seen)}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
