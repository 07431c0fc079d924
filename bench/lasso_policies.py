"""The policies beside each other on neighbour-correlated data, as in the STRADS papers.

    python bench/lasso_policies.py [--quick] [--allow-missing]

500 × 1000, pairs of neighbouring columns correlated at 0.99, λ = 0.1 λmax: column visits, rounds
and seconds until the duality gap is 1e-6·‖y‖²/n, at most 1.5 million visits. The published policies
stop at the first divergence here. Needs no peers (--allow-missing is accepted and changes nothing).
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["NUMBA_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

# After the environment and the path are set.
from diml.data.design_planted import neighbour_correlated
from diml.strads.columns import columns_of
from diml.strads.lasso import solve_lasso, warm_up
from diml.strads.lasso_blocks import Diverged
from diml.strads.lasso_problem import Grid, Round, Stop
from diml.strads.policy import (
    Cyclic,
    Policy,
    Priority,
    PriorityDependency,
    Random,
    WorkingSet,
)

VISITS_MOST = 1_500_000
COLUMNS = 1000
POLICIES: dict[str, Callable[[], Policy]] = {
    "cyclic, one at a time": lambda: Cyclic(COLUMNS, COLUMNS, exact=True),
    "random, U = 32": lambda: Random(COLUMNS, 32),
    "random, U = 256": lambda: Random(COLUMNS, 256),
    "priority, U = 32": lambda: Priority(COLUMNS, 32),
    "priority, exact, U = 128": lambda: Priority(COLUMNS, 128, exact=True),
    "priority+dependency, U = 32": lambda: PriorityDependency(COLUMNS, 32),
    "working-set": WorkingSet,
}


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="at most 200,000 visits")
    parser.add_argument("--allow-missing", action="store_true", help="accepted: there are no peers")
    most = 200_000 if parser.parse_args().quick else VISITS_MOST
    planted = neighbour_correlated()
    held = columns_of(planted.X)
    warm_up(held)
    print(f"{'policy':28} {'visits':>9} {'rounds':>8} {'seconds':>8}  gap")
    for name, make in POLICIES.items():
        policy = make()
        block = getattr(policy, "block", COLUMNS)
        seen: list[Round] = []
        stop = Stop(1e-6, rounds_max=max(1, most // block))
        begun = time.perf_counter()
        note = "not reached"
        try:
            program = solve_lasso(
                held, planted.y, Grid(ratios=(0.1,)), stop, intercept=False, policy=policy,
                listener=seen.append, on_divergence="stop",
            )  # fmt: skip
            note = "" if program.solutions[-1].converged else note
        except Diverged:
            note = "diverged"
        seconds = time.perf_counter() - begun
        last = seen[-1]
        gap = last.gap / float(planted.y @ planted.y) * len(planted.y)
        print(f"{name:28} {last.visits:9} {last.round:8} {seconds:8.3f}  {gap:.1e} {note}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
