"""Run every simulation over many seeded schedules: `python -m tests.sim --schedules 10000`.

A schedule that breaks a promise is printed with its seed; `--seed N` plays that one again and
prints its trace. The seeds are shared among the cores. Exit status 1 if a promise was broken, or
if a way to die never struck in a run long enough to expect it.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections import Counter

from diml.drill import POINTS
from tests.sim import allreduce_check, ps_schedule
from tests.sim.registry import Simulation

SIMULATIONS = {
    "allreduce": Simulation(
        allreduce_check.run_schedule,
        (*POINTS, "idle spare", "all workers"),
        allreduce_check.scale,
    ),
    "ps": Simulation(ps_schedule.run_schedule, ps_schedule.POINTS),
}
# From so many schedules on, a way to die that never struck is a fault of the simulation.
_LONG = 1000
_FAILURES_SHOWN = 5


def _batch(job: tuple[str, range]) -> tuple[Counter[str], Counter[str], list[str]]:
    """Endings, deaths and failures of a range of seeds."""
    name, seeds = job
    endings: Counter[str] = Counter()
    deaths: Counter[str] = Counter()
    failures: list[str] = []
    for seed in seeds:
        try:
            verdict = SIMULATIONS[name].run(seed, None)
        except Exception as error:
            failures.append(f"seed {seed}: {type(error).__name__}: {error}")
            continue
        endings[verdict.ended] += 1
        deaths += verdict.deaths
    return endings, deaths, failures


def _many(name: str, schedules: int, processes: int) -> bool:
    """Run a simulation over seeds 0..schedules-1 and print the account. Returns success."""
    begun = time.perf_counter()
    jobs = [(name, range(start, schedules, processes * 4)) for start in range(processes * 4)]
    with multiprocessing.Pool(processes) as pool:
        parts = pool.map(_batch, jobs, chunksize=1)
    endings = sum((part[0] for part in parts), Counter())
    deaths = sum((part[1] for part in parts), Counter())
    failures = [line for part in parts for line in part[2]]
    print(f"{name}: {schedules} schedules in {time.perf_counter() - begun:.1f} s")
    for ending, count in endings.most_common():
        print(f"  {count:6d}  {ending}")
    print("  deaths:")
    for where, count in sorted(deaths.items()):
        print(f"  {count:6d}  {where}")
    missing = [point for point in SIMULATIONS[name].points if not deaths[point]]
    if missing and schedules >= _LONG:
        failures.append(f"nobody died at: {', '.join(missing)}")
    for line in failures[:_FAILURES_SHOWN]:
        print(f"FAILED {name}: {line}")
    if failures:
        print(f"{len(failures)} failures; play one again with --only {name} --seed N")
    return not failures


def _one(name: str, seed: int) -> bool:
    """Play one schedule and print its trace."""
    trace: list[str] = []
    try:
        verdict = SIMULATIONS[name].run(seed, trace)
        end = verdict.ended
    except AssertionError as error:
        end = f"FAILED: {type(error).__name__}: {error}"
    print(f"{name}: seed {seed}", *trace, end, sep="\n")
    return not end.startswith("FAILED")


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.sim", description=__doc__)
    parser.add_argument("--schedules", type=int, default=10_000, help="schedules of each")
    parser.add_argument("--seed", type=int, help="play this schedule again, with its trace")
    parser.add_argument("--only", choices=sorted(SIMULATIONS), help="one simulation")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    ok = True
    for name in [arguments.only] if arguments.only else sorted(SIMULATIONS):
        if arguments.seed is not None:
            ok &= _one(name, arguments.seed)
            continue
        ok &= _many(name, arguments.schedules, arguments.processes)
        scale = SIMULATIONS[name].scale
        if scale is not None:
            print(*scale(), sep="\n")
    return 0 if ok else 1


if __name__ == "__main__":
    sys.exit(main())
