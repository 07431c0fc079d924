"""What a death costs the loop: a rank replaced inside the job (R3), or all started again (R6).

    python bench/recovery.py [--mb 16] [--rounds 3] [--ranks 4]

A loop of steps of 50 ms checkpoints a model and a local state of `--mb` each after every step, and
notes when each step ended. In a round rank 1 dies, or all ranks do, in the middle of the run; the
cost is the longest time between two steps, less a step's usual time. Printed, median of the rounds:
that cost, the checkpoints that were lost by it, and how R6 compares. `a bare start` is mpirun with
as many ranks that only say hello to each other: nobody can start a job again faster than that.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

STEPS, DIES_AT = 40, 20
# What is promised: a start from the memory of the node, beyond mpirun's own.
BEYOND_START_MOST_S = 5.0
PROGRAM = f"""
import os, signal, sys, time
import numpy as np
import diml

floats, who, path = int(sys.argv[1]), sys.argv[2], sys.argv[3]
with diml.init() as job:
    version, model, local = job.load_checkpoint()
    if version == 0:
        model, local = np.zeros(floats), np.full(floats, float(job.rank))
    note = open(path, "a", buffering=1) if job.rank == 0 else None
    first = job.incarnation == 0 and os.environ.get("DIML_ATTEMPT", "1") == "1"
    for step in range(version, {STEPS}):
        time.sleep(0.05)
        if step == {DIES_AT} and first and (who == "all" or job.rank == 1 and who == "one"):
            os.kill(os.getpid(), signal.SIGKILL)
        model = model + job.allreduce(local)
        job.checkpoint(model, local)
        if note:
            print(step, time.time(), file=note)
    assert model[0] == {STEPS} * sum(range(job.size))
"""
HELLO = "import diml\nwith diml.init() as job: job.barrier()\n"


def environment(folder: Path, **more: str) -> dict[str, str]:
    """This process's, with the checkout's DiML."""
    checkout = str(Path(__file__).resolve().parents[1])
    kept = {name: text for name, text in os.environ.items() if not name.startswith("DIML_")}
    return {**kept, "PYTHONPATH": checkout, "TMPDIR": str(folder), **more}


def run(command: list[str], folder: Path, **env: str) -> None:
    """Run to a good end."""
    done = subprocess.run(
        command, env=environment(folder, **env), capture_output=True, text=True, timeout=120
    )
    if done.returncode:
        sys.exit(f"{' '.join(command)}: exit status {done.returncode}\n{done.stderr}")


def cost(folder: Path) -> tuple[float, int]:
    """(seconds that the death cost, checkpoints lost) by the notes of rank 0."""
    notes = [line.split() for line in (folder / "notes").read_text().splitlines()]
    steps, times = [int(step) for step, _ in notes], [float(at) for _, at in notes]
    gaps = [b - a for a, b in pairwise(times)]
    longest = gaps.index(max(gaps))
    return max(gaps) - statistics.median(gaps), steps[longest] + 1 - steps[longest + 1]


def job(ranks: int, mb: int, who: str, folder: Path, spares: int, supervised: bool) -> None:
    """One run of the loop in which somebody dies."""
    words = [str(folder / "loop.py"), str((mb << 20) // 8), who, str(folder / "notes")]
    python, mpirun = sys.executable, str(Path(sys.executable).with_name("mpirun"))
    if supervised:
        run([python, "-m", "diml.cli", "run", "-n", str(ranks), "--", *words], folder)
        return
    launcher = [mpirun, "-n", str(ranks + spares), python]
    run([*launcher, *words], folder, DIML_SPARES=str(spares))


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mb", type=int, default=16, help="of the model, and of each local state")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--ranks", type=int, default=4)
    flags = parser.parse_args()
    ways = {
        "R3: a spare takes over": ("one", 1, False),
        "R3: a new process is spawned": ("one", 0, False),
        "R6: all ranks, by diml run": ("all", 0, True),
    }
    costs: dict[str, list[tuple[float, int]]] = {name: [] for name in ways}
    starts = []
    for _ in range(flags.rounds):
        for name, (who, spares, supervised) in ways.items():
            # Directly below /tmp: the launcher's socket paths have a length limit.
            with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as text:
                folder = Path(text)
                (folder / "loop.py").write_text(PROGRAM)
                job(flags.ranks, flags.mb, who, folder, spares, supervised)
                costs[name].append(cost(folder))
        with tempfile.TemporaryDirectory(prefix="bench-", dir="/tmp") as text:
            (Path(text) / "hello.py").write_text(HELLO)
            begun = time.perf_counter()
            mpirun = str(Path(sys.executable).with_name("mpirun"))
            words = [mpirun, "-n", str(flags.ranks), sys.executable, f"{text}/hello.py"]
            run(words, Path(text))
            starts.append(time.perf_counter() - begun)
    print(f"{flags.ranks} ranks, {flags.mb} MB of model and of local state each")
    print(f"{'':32} {'seconds':>9} {'worst':>9} {'checkpoints lost':>18}")
    medians = {}
    for name, found in costs.items():
        medians[name] = statistics.median(seconds for seconds, _ in found)
        worst, lost = max(seconds for seconds, _ in found), max(lost for _, lost in found)
        print(f"{name:32} {medians[name]:9.3f} {worst:9.3f} {lost:18}")
    start = statistics.median(starts)
    print(f"{'a bare start':32} {start:9.3f} {max(starts):9.3f}")
    *inside, again = medians.values()
    print(f"R6 costs {again / inside[0]:.0f} x a spare, {again / inside[1]:.1f} x a new process")
    beyond = again - start
    print(f"R6 beyond a bare start: {beyond:.2f} s (at most {BEYOND_START_MOST_S:g} s)")


if __name__ == "__main__":
    main()
