"""A program for drills: workers count in integers by small reads and updates, as fast as they can.

What it sends is what goes the short way: few rows of dense tables, a clock that is one update and
nothing else. Two thirds of the clocks change one table, the others both. Every worker adds ones to
drawn rows of its own column, and knows at each read what its own column must hold: all of its
clocks before, and at most the one that a former life had begun. Prints the clock of worker 0 as it
goes, and what each worker has found wrong at the end.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from numpy.typing import NDArray

import diml

ROWS, DRAWN, KINDS, TELL_EVERY = 60, 20, 63, 100


def drawn(worker: int) -> NDArray[np.int64]:
    """By clock modulo KINDS, the rows that a worker counts, some of them twice: (KINDS, DRAWN)."""
    return np.random.default_rng(worker).integers(0, ROWS, (KINDS, DRAWN))


def counted(worker: int, clocks: int, every: int) -> NDArray[np.int64]:
    """How often a worker has counted each row in so many clocks, of which each `every`th does."""
    times = np.zeros(ROWS, np.int64)
    for clock, ids in enumerate(drawn(worker)):
        if clock % every == 0:
            np.add.at(times, ids, len(range(clock, clocks, KINDS)))
    return times


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--staleness", type=int, default=2)
    parser.add_argument("--clocks", type=int, default=10_000)
    flags = parser.parse_args()
    everything = np.arange(ROWS)
    with diml.init(servers=1) as job:
        ps = job.parameter_server(flags.staleness)
        every = {"first": 1, "third": 3}
        tables = {name: ps.table(name, ROWS, ps.workers, "int64") for name in every}
        ids = drawn(ps.worker)
        ones = np.zeros((DRAWN, ps.workers), np.int64)
        ones[:, ps.worker] = 1
        before = {name: counted(ps.worker, ps.clock_now, every[name]) for name in tables}
        wrong = 0
        for clock in range(ps.clock_now, flags.clocks):
            its = ids[clock % KINDS]
            for name, table in tables.items():
                if clock % every[name]:
                    continue
                own = table.get(its)[:, ps.worker]
                least = before[name][its]
                np.add.at(before[name], its, 1)
                wrong += int(((own < least) | (own > before[name][its])).sum())
                table.inc(its, ones)
            ps.clock()
            if ps.worker == 0 and (clock + 1) % TELL_EVERY == 0:
                print(f"clock {clock + 1}", flush=True)
        ps.barrier()
        for name, table in tables.items():
            wanted = [counted(worker, flags.clocks, every[name]) for worker in range(ps.workers)]
            wrong += int(np.abs(table.get(everything) - np.stack(wanted, axis=1)).sum())
        print(f"worker {ps.worker} digest 0 wrong {wrong} seen {max(ps.staleness_seen)}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
