"""What a durable checkpoint costs: against a plain write of the same bytes, and to the job.

    python bench/checkpoint.py [--mb 1024] [--rounds 3] [--directory DIR] [--mf] [--quick]

Prints a table: seconds and rate of a plain write (one file, fsync), of a durable checkpoint (shard,
manifest, all syncs), their ratio; and by how much a loop of computing in the main thread was held
up while the background thread wrote, as a part of the time that the write took. Paired rounds
take turns; the table gives the best of each. With `--mf` only: what matrix factorization on two
workers loses to a checkpoint in the memory of the node after every pass. `--quick` is both of it,
smaller, in less than a minute.
"""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from diml.checkpoint import codec
from diml.checkpoint.codec import Bytes
from diml.checkpoint.durable import Vault
from diml.checkpoint.manifest import Identity, Manifest
from diml.world import marker, node_memory

# What is promised: the rate of a plain write, and what the training loop may lose.
RATE_LEAST, HELD_MOST = 0.80, 0.10
MF_MOST = 0.03
MF = "--generate --K 32 --update adagrad --lambda 0.02 --engine rotate --quiet --loss_file loss"
# The job, in which checkpoints are made for TURN passes, then not made for as many, and so on:
# other load on the machine then meets both alike.
TURN = 10
# The longest time that a worker spends on each is noted as well: that says more on a noisy machine.
IN_TURNS = f"""
import atexit, os, time
from diml.allreduce.durability import Durability
from diml.checkpoint.keeper import Keeper, Wishes
from diml.jobs import mf
from diml.jobs.flags import run_job
wishes, keep, asked, spent = Keeper.wishes, Durability.keep, 0, []
def in_turns(self, rank):
    global asked
    asked += 1
    stop, *said = wishes(self, rank)
    memory = Wishes(*said)
    return (stop, *(memory if asked // {TURN} % 2 else memory._replace(due=0)))
def timed(self):
    begun = time.perf_counter()
    keep(self)
    if asked // {TURN} % 2:
        spent.append(time.perf_counter() - begun)
Keeper.wishes, Durability.keep = in_turns, timed
atexit.register(lambda: open(f"spent-{{os.getpid()}}", "w").write(" ".join(map(str, spent))))
run_job(mf.main)
"""
MF_PASSES = 400
QUICK_MB = 256


_MPIRUN = str(Path(sys.executable).with_name("mpirun"))


def plain_write(path: Path, data: Bytes) -> float:
    """Seconds to bring the bytes to the disk by the plainest of means."""
    begun = time.perf_counter()
    descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    view, done = data.data, 0
    while done < data.size:
        done += os.pwrite(descriptor, view[done : done + (64 << 20)], done)
    os.fsync(descriptor)
    os.close(descriptor)
    return time.perf_counter() - begun


def checkpoint(directory: Path, version: int, data: Bytes) -> tuple[Vault, float]:
    """Begin a durable checkpoint; the vault, and the seconds that beginning took."""
    vault = Vault(directory, "bench")
    manifest = Manifest(Identity("bench", 0, {}), 1, "bench", version, 0, 1, False)
    begun = time.perf_counter()
    vault.offer(manifest, {"model": data})
    return vault, time.perf_counter() - begun


def step(work: Bytes) -> None:
    """A step of a training loop, about a millisecond; NumPy lets other threads run meanwhile."""
    np.add.reduce(work.view(np.uint64))


def steps_per_second(work: Bytes, seconds: float) -> float:
    """How fast the loop runs when nothing is being written."""
    begun, steps = time.perf_counter(), 0
    while time.perf_counter() - begun < seconds:
        step(work)
        steps += 1
    return steps / (time.perf_counter() - begun)


def held_up(directory: Path, data: Bytes, work: Bytes) -> float:
    """The time that the loop lost to a checkpoint, as a part of the checkpoint's time."""
    free = steps_per_second(work, 1.0)
    vault, _ = checkpoint(directory, 2, data)
    begun, steps = time.perf_counter(), 0
    while vault.busy:
        step(work)
        steps += 1
    seconds = time.perf_counter() - begun
    free = min(free, steps_per_second(work, 1.0))
    return max(0.0, 1.0 - steps / (free * seconds))


def passes(iterations: int) -> tuple[list[float], float]:
    """Seconds of each pass of a factorization on two workers, and of a checkpoint in memory."""
    with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as folder:
        memory = node_memory.new_folder()
        env = {**os.environ, "PYTHONPATH": str(Path(__file__).resolve().parents[1])}
        env[marker.MEMORY] = str(memory)
        flags = [*MF.split(), "--num_iterations", str(iterations)]
        command = [_MPIRUN, "-n", "2", sys.executable, "-c", IN_TURNS, *flags]
        try:
            subprocess.run(command, env=env, cwd=folder, check=True, stdout=subprocess.DEVNULL)
        finally:
            shutil.rmtree(memory, ignore_errors=True)
        rows = csv.DictReader(Path(folder, "loss").read_text().splitlines())
        ends = [float(row["seconds"]) for row in rows]
        spent = [np.fromstring(path.read_text(), sep=" ") for path in Path(folder).glob("spent-*")]
    return np.diff(ends, prepend=0.0).tolist(), max(float(np.median(one)) for one in spent)


def mf_cost(iterations: int) -> None:
    """Measure and print what a checkpoint in memory after every pass costs factorization."""
    plain: list[float] = []
    kept: list[float] = []
    each, spent = passes(iterations)
    for number, seconds in enumerate(each):
        # What pass n - 1 ended with is written during pass n; the first ones of a turn are mixed.
        if number % TURN > 1:
            (kept if (number // TURN) % 2 else plain).append(1e3 * seconds)
    without, within = np.median(plain), np.median(kept)
    print(f"{'MF, engine rotate, 2 workers':34} {'ms a pass':>9}  (median of {len(kept)})")
    print(f"{'without checkpoints':34} {without:9.2f}")
    print(f"{'in memory after every pass':34} {within:9.2f}")
    print(f"cost: {within / without - 1:.1%} (at most {MF_MOST:.0%})")
    share = 1e3 * spent / without
    print(f"of it in checkpoints: {1e3 * spent:.2f} ms, {share:.1%} of a pass without")


def durable_cost(mb: int, rounds: int, directory: Path) -> None:
    """Measure and print what a durable checkpoint costs."""
    state = np.random.default_rng(0).integers(0, 255, mb << 20, dtype=np.uint8)
    data = codec.encode({"w": state})
    work = np.ones(8 << 20, np.uint8)
    plain, durable, held = [], [], []
    for _ in range(rounds):
        folder = Path(tempfile.mkdtemp(prefix="bench-checkpoint-", dir=directory))
        try:
            plain.append(plain_write(folder / "plain", data))
            (folder / "plain").unlink()
            begun = time.perf_counter()
            vault, _ = checkpoint(folder, 1, data)
            vault.drain()
            durable.append(time.perf_counter() - begun)
            shutil.rmtree(next(folder.iterdir()))
            held.append(held_up(folder, data, work))
        finally:
            shutil.rmtree(folder)
    size_mb = data.size / 1e6
    ratio = min(plain) / min(durable)
    print(f"{'':34} {'seconds':>9} {'MB/s':>9}")
    print(f"{'plain write and fsync':34} {min(plain):9.2f} {size_mb / min(plain):9.0f}")
    print(f"{'durable checkpoint':34} {min(durable):9.2f} {size_mb / min(durable):9.0f}")
    print(f"rate of a plain write: {ratio:.0%} (at least {RATE_LEAST:.0%})")
    print(f"loop held up: {min(held):.0%} of the write's time (at most {HELD_MOST:.0%})")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=1024, help="size of the state")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--directory", type=Path, default=Path("."))
    parser.add_argument("--mf", action="store_true", help="only MF with checkpoints in memory")
    parser.add_argument("--quick", action="store_true", help="all of it, smaller")
    parser.add_argument("--allow-missing", action="store_true", help="skip MF without an mpirun")
    flags = parser.parse_args()
    if not flags.mf:
        durable_cost(QUICK_MB if flags.quick else flags.mb, flags.rounds, flags.directory)
    if flags.allow_missing and not Path(_MPIRUN).exists():
        print(f"MF not measured: there is no {_MPIRUN}")
    elif flags.mf or flags.quick:
        mf_cost(MF_PASSES // 4 if flags.quick else MF_PASSES)


if __name__ == "__main__":
    main()
