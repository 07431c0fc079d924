"""Random drills: processes of a running job are killed from outside at random times.

`python -m tests.drills.soak --runs 200` starts so many jobs of 4 ranks and 4 spares, kills one to
four of their processes in each, and compares every rank's final state with arithmetic. A run that
is wrong or hangs is printed with its seed; `--seed N` repeats its kills (as closely as time lets).
"""

from __future__ import annotations

import argparse
import random
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from diml.events import read_events
from tests.helpers.mpi import start_mpi

RANKS, SPARES, STEPS, LENGTH, PRIME = 4, 4, 60, 2000, 1_000_003
TIMEOUT_S = 120.0

PROGRAM = f"""
    import time, zlib, numpy as np, diml
    with diml.init(spares={SPARES}, replicas={RANKS - 1}) as job:
        print("up", flush=True)
        version, model, local = job.load_checkpoint()
        if version == 0:
            model, local = np.arange({LENGTH}), np.arange({LENGTH}) + job.rank
        for step in range(version, {STEPS}):
            time.sleep(0.02)
            total = job.allreduce((model * (job.rank + 1) + local) % {PRIME})
            root = step % job.size
            word = job.broadcast(local[:10] if job.rank == root else None, root)
            largest = job.allreduce(local, "max")
            parts = job.allgather(local[:3])
            model = (total + largest) % {PRIME}
            model[:10] += word
            model[10:10 + parts.size] += parts
            local = (local * 3 + total) % {PRIME}
            job.checkpoint(model, local)
        print("final", job.rank, zlib.crc32(model.tobytes() + local.tobytes()), flush=True)
"""


def expected() -> list[str]:
    """What the ranks print at the end, by arithmetic without MPI."""
    import zlib

    model = np.arange(LENGTH)
    local = [np.arange(LENGTH) + rank for rank in range(RANKS)]
    for step in range(STEPS):
        total = sum((model * (rank + 1) + local[rank]) % PRIME for rank in range(RANKS))
        word, largest = local[step % RANKS][:10], np.max(local, axis=0)
        parts = np.concatenate([one[:3] for one in local])
        model = (total + largest) % PRIME
        model[:10] += word
        model[10 : 10 + parts.size] += parts
        local = [(one * 3 + total) % PRIME for one in local]
    digests = (zlib.crc32(model.tobytes() + one.tobytes()) for one in local)
    return [f"final {rank} {digest}" for rank, digest in enumerate(digests)]


def run_once(seed: int) -> int:
    """One job with its kills. Returns how many processes were killed; raises AssertionError."""
    rng = random.Random(seed)
    kills = rng.randint(1, SPARES)
    killed: set[int] = set()
    with (
        tempfile.TemporaryDirectory(prefix="diml-soak-") as folder,
        start_mpi(RANKS + SPARES, PROGRAM, env={"DIML_EVENTS": f"{folder}/events"}) as job,
    ):
        deadline = time.monotonic() + 60.0
        while job.stdout.count("up") < RANKS and time.monotonic() < deadline:
            time.sleep(0.02)
        for _ in range(kills):
            if pause := rng.choice((0.0, rng.uniform(0.0, 1.0))):
                time.sleep(pause)
            ranks = sorted(job.ranks().items())
            if not ranks or "final" in job.stdout:
                break
            rank, process = rng.choice(ranks)
            if job.kill(process.pid):
                killed.add(rank)
        finished = job.wait(timeout_s=TIMEOUT_S)
        events = Path(folder, "events")
        loads = [e["time"] for e in read_events(events) if e["what"] == "load"]
    final = sorted(line for line in finished.stdout.splitlines() if line.startswith("final"))
    if killed == set(range(RANKS)) and finished.returncode == 1 and not loads:
        # All workers died before a replacement had the state: that it is lost has to be said.
        assert "all state is gone" in finished.stderr, f"seed {seed}\n{finished.report()}"
        return len(killed)
    assert finished.returncode == 0, f"seed {seed}\n{finished.report()}"
    assert final == expected(), f"seed {seed}: {final}\n{finished.report()}"
    return len(killed)


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--seed", type=int, help="repeat one run")
    arguments = parser.parse_args()
    seeds = range(arguments.runs) if arguments.seed is None else [arguments.seed]
    failures = kills = 0
    for seed in seeds:
        try:
            killed = run_once(seed)
        except AssertionError as error:
            failures += 1
            print(f"FAILED {error}", flush=True)
            continue
        kills += killed
        print(f"seed {seed}: {killed} killed, right", flush=True)
    print(f"{len(seeds)} runs, {kills} processes killed, {failures} wrong or hung")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
