"""A program that uses collectives and the parameter server, and checkpoints both by one call.

Each step counts drawn rows and adds to a sum over all workers; a checkpoint is made every third
step, so that a replacement does clocks again that the servers have had of it already.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from pathlib import Path

import numpy as np

import diml
from tests.helpers import kept

ROWS = 40


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--staleness", type=int, default=0)
    parser.add_argument("--late", action="store_true", help="open the server after the load")
    parser.add_argument("--fail-at", type=int, default=-1)
    flags = parser.parse_args()
    with diml.init(servers=1) as job:
        ps = None if flags.late else job.parameter_server(flags.staleness)
        version, model, _ = job.load_checkpoint()
        ps = ps or job.parameter_server(flags.staleness)
        count = ps.table("count", ROWS, 1, "int64")
        step, total = (0, 0) if version == 0 else model
        if version and job.rank == 0:
            print(f"loaded step {step}, clock {ps.clock_now}", flush=True)
        while step < flags.steps:
            # A second version is begun when the first is there.
            if step in (flags.fail_at // 2, flags.fail_at):
                kept.wait_for(1 + (step == flags.fail_at), Path(os.environ["DIML_CHECKPOINT_DIR"]))
            if step == flags.fail_at:
                raise RuntimeError("the program has an error")
            total += int(job.allreduce(np.array([step + job.rank]), "sum")[0])
            ids = np.random.default_rng((job.rank, step)).integers(0, ROWS, 10)
            count.get(ids)
            count.inc(ids, np.ones((10, 1), np.int64))
            time.sleep(0.005)
            ps.clock()
            step += 1
            if step % 3 == 0:
                job.checkpoint((step, total))
        ps.barrier()
        counted = int(count.get(np.arange(ROWS)).sum())
        print(f"worker {job.rank} total {total} counted {counted} of {flags.steps * job.size * 10}")
    sys.stdout.flush()


if __name__ == "__main__":
    main()
