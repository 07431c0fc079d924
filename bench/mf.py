"""Speed of matrix factorization: python bench/mf.py

The distributed job (workers and a server under mpirun, their data generated alike) against the
bare kernel in one process on the same entries, in the same run. Also the kernel's memory traffic
against what a copy of memory reaches. Ratios are what counts; times are of this machine.
"""

from __future__ import annotations

import argparse
import csv
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from diml.data.planted import Planted
from diml.jobs.mf_data import Layout, Ratings, Source, load, share_of
from diml.jobs.mf_model import Columns, Model, Rule
from diml.kernels import mf as kernels

CHECKOUT = Path(__file__).resolve().parents[1]
MPIRUN = Path(sys.executable).with_name("mpirun")
AT_LEAST = 0.60


def bare_rate(ratings: Ratings, rule: Rule, passes: int) -> float:
    """Updates a second of the kernel alone: one process, all entries, the best of the passes."""
    share = share_of(ratings, 0, 1, Layout(1, shuffled=True), rule.seed)
    model = Model(rule, share, ratings.mean, ratings.n_rows)
    block = share.blocks[0]
    columns = Columns(np.zeros((len(block.cols), rule.k), np.float32), np.zeros((0, 0), "f4"))
    seconds = []
    for iteration in range(passes):
        started = time.perf_counter()
        model.descend(block, columns, iteration)
        seconds.append(time.perf_counter() - started)
    return len(block.train.values) / min(seconds)


def job_rate(plan: Planted, rule: Rule, workers: int, iterations: int, entries: int) -> float:
    """Updates a second of all workers: the median over the second half of the iterations."""
    with tempfile.TemporaryDirectory() as folder:
        losses = Path(folder) / "loss"
        size = f"{plan.rows}x{plan.cols}x{plan.entries}"
        command = [MPIRUN, "-n", workers + 1, sys.executable, "-m", "diml.jobs.mf", "--quiet"]
        command += ["--generate", size, "--planted_skew", plan.skew, "--seed", plan.seed]
        command += ["--K", rule.k, "--lambda", rule.decay, "--init_step_size", rule.init_step_size]
        command += ["--num_iterations", iterations, "--loss_file", losses, "--servers", 1]
        words = [str(word) for word in command]
        run = subprocess.run(words, cwd=CHECKOUT, capture_output=True, text=True, timeout=300)
        if run.returncode:
            sys.exit(f"the job failed with status {run.returncode}:\n{run.stderr}")
        with losses.open(encoding="ascii") as file:
            seconds = np.array([float(line["seconds"]) for line in csv.DictReader(file)])
    return entries / float(np.median(np.diff(seconds)[iterations // 2 :]))


def copy_rate() -> float:
    """Bytes a second that a copy of memory reads and writes."""
    source = np.ones(1 << 25)
    target = np.empty_like(source)
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        np.copyto(target, source)
        seconds.append(time.perf_counter() - started)
    return 2 * source.nbytes / min(seconds)


def main() -> None:
    """Measure and print the table; exit status 1 where the target is missed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--entries", type=int, default=5_000_000)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--K", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    flags = parser.parse_args()
    plan = Planted(70_000, 10_000, flags.entries, skew=0.5, seed=1)
    rule = Rule(k=flags.K, decay=0.05, init_step_size=0.2, seed=1)
    kernels.warm_up()
    ratings = load(Source(None, plan, test_fraction=0.05, seed=1))
    entries = len(ratings.train.values)
    print(f"{entries:,} entries, {plan.rows:,} x {plan.cols:,}, K = {rule.k}, update petuum")
    print(f"{'':>14} {'M updates/s':>12} {'a worker':>9} {'of the bare kernel':>19}")
    short = False
    rates: dict[int, list[float]] = {workers: [] for workers in flags.workers}
    bare: list[float] = []
    for _ in range(flags.repeats):
        bare.append(bare_rate(ratings, rule, passes=4))
        for workers in flags.workers:
            rates[workers].append(job_rate(plan, rule, workers, 12, entries))
    alone = float(np.median(bare))
    print(f"{'bare kernel':>14} {alone / 1e6:12.1f}")
    for workers, measured in rates.items():
        rate = float(np.median(measured))
        ratio = float(np.median(np.array(measured) / (workers * np.array(bare))))
        short |= workers == 2 and ratio < AT_LEAST
        name = f"{workers} worker{'s' * (workers > 1)}"
        print(f"{name:>14} {rate / 1e6:12.1f} {rate / workers / 1e6:9.1f} {100 * ratio:17.0f} %")
    traffic = alone * (16 * rule.k + 12)
    bound = copy_rate()
    print(f"kernel traffic {traffic / 1e9:.1f} GB/s (rows of L and R read and written, and the")
    print(f"entries), a copy of memory {bound / 1e9:.1f} GB/s: {traffic / bound:.2f} x")
    if short:
        sys.exit(f"2 workers are below {100 * AT_LEAST:.0f} % of twice the bare kernel")


if __name__ == "__main__":
    main()
