"""The Lasso as a function that any job can call: picks the program that suits data and policy."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.errors import Misuse
from diml.strads.columns import Columns, DenseColumns, SparseColumns
from diml.strads.lasso_base import LassoBase
from diml.strads.lasso_blocks import LassoBlocks
from diml.strads.lasso_logistic import LassoLogistic
from diml.strads.lasso_problem import Grid, Stop
from diml.strads.lasso_program import LassoProgram
from diml.strads.lasso_tall import LassoTall, is_tall
from diml.strads.policy import Policy, policy_by_name
from diml.strads.program import Alone, Collectives, run

Floats = NDArray[np.float64]


def solve_lasso(
    held: Columns,
    y: Floats,
    grid: Grid,
    stop: Stop,
    *,
    job: Collectives | None = None,
    policy: str | Policy = "working-set",
    pipeline: int = 0,
    checkpoint_work: int = 2_000_000_000,
    on_divergence: str = "halve",
    loss: str = "squared",
    **options: Any,
) -> LassoBase:
    """Run a Lasso to its end and return the program, whose `solutions` are the answers.

    Args:
        held: this worker's columns. y: (n,). grid, stop: which λ and how well.
        job: None for this process alone; else called by all workers of the job.
        policy: a name, or a policy for `held.total` variables.
        loss: "squared", or "logistic" for labels 1 and −1 (working-set only).
        options: intercept, standardise, l1_ratio, start_from, copy, listener of `LassoBase`;
            block_entries of `LassoProgram`.

    Raises:
        Misuse: data, λ or policy that cannot be used.
        Diverged: a published policy diverged and `on_divergence` is "stop".
    """
    if isinstance(policy, str):
        policy = policy_by_name(policy, max(held.total, 1))
    program: LassoBase
    if loss == "logistic":
        if policy.update != "solve":
            raise Misuse("the logistic loss goes with the policy working-set only")
        program = LassoLogistic(held, y, grid, stop, **options)
    elif policy.update == "solve":
        kind = LassoTall if is_tall(held) else LassoProgram
        program = kind(held, y, grid, stop, **options)
    else:
        program = LassoBlocks(
            held, y, grid, stop, policy=policy, on_divergence=on_divergence, **options
        )
    run(
        job or Alone(),
        program,
        policy=policy,
        pipeline=pipeline,
        checkpoint_work=checkpoint_work,
    )
    return program


def warm_up(held: Columns) -> None:
    """Compile, or load from the cache, all kernels for data like `held`: solves a tiny Lasso."""
    dtype = held.data.dtype if isinstance(held, SparseColumns) else held.X.dtype
    tiny = np.asfortranarray(np.eye(4, 3) + 0.1, dtype=dtype)
    few: Columns = DenseColumns(3, 0, tiny)
    if isinstance(held, SparseColumns):
        indptr, indices = np.arange(0, 13, 4), np.tile(np.arange(4, dtype=np.int32), 3)
        few = SparseColumns(4, 3, 0, indptr, indices, tiny.ravel(order="F"))
    grid, stop = Grid(ratios=(0.1,)), Stop(1e-6)
    y = np.array([1.0, 2.0, 0.0, -1.0])
    solve_lasso(few, y, grid, stop)
    # It would take thousands of its short steps.
    stop = Stop(1e-6, rounds_max=3)
    solve_lasso(few, y, grid, stop, policy="priority+dependency")
