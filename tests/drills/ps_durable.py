"""A program for durable checkpoints: the same sums whatever the number of servers and workers.

Item j of a clock belongs to worker j mod workers and counts one row; each worker also keeps how
many items it has counted, so that a checkpoint is wrong wherever rows, clock and own states do not
fit together. A float table and an AdaGrad vector are moved as well: their digest tells whether the
bits are those of an undisturbed run.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
import zlib
from pathlib import Path

import numpy as np

import diml
from tests.helpers import kept

ROWS, ITEMS = 101, 24


def wait_for_kept(version: int) -> None:
    """Hold still until a checkpoint of this clock, or of a later one, is on the disk."""
    kept.wait_for(version, Path(os.environ["DIML_CHECKPOINT_DIR"]) / "ps")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--clocks", type=int, default=30)
    parser.add_argument("--pause", type=float, default=0.0)
    parser.add_argument("--consistency", default="bsp")
    parser.add_argument("--fail-at", type=int, default=-1, help="raise an error at this clock")
    parser.add_argument("--hurry", action="store_true", help="no pauses once it was resumed")
    parser.add_argument("--data", default="A", help="the name of the data set")
    parser.add_argument("--any-workers", action="store_true")
    parser.add_argument("--width", type=int, default=3)
    flags = parser.parse_args()
    everything = np.arange(ROWS)
    with diml.init(servers=1) as job:
        job.identify(data=flags.data)
        ps = job.parameter_server(consistency=flags.consistency, any_workers=flags.any_workers)
        count = ps.table("count", ROWS, 1, "int64")
        model = ps.table("model", ROWS, flags.width, "float32", ("uniform", 0, 1))
        steps = ps.kv("steps", ROWS, dtype="float64", rule="adagrad")
        start, resumed = ps.clock_now, ps.resumed
        mine = 0
        if ps.local is not None:
            mine = ps.local["mine"]
        elif resumed is not None and ps.worker == 0:
            mine = sum(state["mine"] for state in resumed.locals)
        if resumed is not None and ps.worker == 0:
            print(f"resumed at {resumed.clock} of {resumed.workers} workers", flush=True)
        for clock in range(start, flags.clocks):
            if clock == flags.fail_at - 5:
                wait_for_kept(1)  # so that the next one is not late
            if clock == flags.fail_at:
                wait_for_kept(flags.fail_at // 2)
                raise RuntimeError("the program has an error")
            rows = model.get(everything)
            model.inc(everything, np.float32(0.01) - np.float32(0.1) * rows)
            items = np.arange(ps.worker, ITEMS, ps.workers)
            drawn = np.random.default_rng(clock).integers(0, ROWS, ITEMS)[items]
            count.inc(drawn, np.ones((len(items), 1), np.int64))
            keys = np.unique(drawn)
            steps.push(keys, steps.pull(keys) + 1.0)
            mine += len(items)
            time.sleep(0.0 if flags.hurry and resumed is not None else flags.pause)
            ps.clock(local={"mine": mine})
            ps.checkpoint()
            if ps.worker == 0:
                print(f"clock {clock + 1}", flush=True)
        ps.barrier()
        total = int(count.get(everything).sum())
        digest = zlib.crc32(model.get(everything).tobytes())
        digest = zlib.crc32(steps.pull(everything).tobytes(), digest)
        mine_all = int(job.allreduce(np.array([mine]), "sum")[0])
        print(f"worker {ps.worker} digest {digest} counted {total} own {mine_all}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
