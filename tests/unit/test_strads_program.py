"""A third program on the interface, as a user writes it: non-negative least squares."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import scipy.optimize
from numpy.typing import NDArray

from diml.errors import Misuse
from diml.strads import Alone, Program, run
from diml.strads.dispatch import Lead, Segment
from diml.strads.policy import Cyclic

Floats = NDArray[np.float64]


class NonNegative(Program):
    """min ‖y − Xβ‖² with β ≥ 0; this worker holds some rows of X and y."""

    def __init__(self, X: Floats, y: Floats, passes: int) -> None:
        self.X, self.y, self.passes = X, y, passes
        self.variables = X.shape[1]
        self.beta = np.zeros(self.variables)

    def start(self, saved: dict[str, Any] | None) -> None:
        if saved is not None:
            self.beta = np.array(saved["beta"])
        self.r = self.y - self.X @ self.beta

    def push(self, block: NDArray[np.int64]) -> Floats:
        columns = self.X[:, block]
        return np.stack([columns.T @ self.r, (columns**2).sum(axis=0)])

    def pull(self, block: NDArray[np.int64], result: Floats) -> Floats:
        fresh = np.maximum(0.0, self.beta[block] + result[0] / result[1])
        step: Floats = fresh - self.beta[block]
        self.beta[block] = fresh
        self.r = self.r - self.X[:, block] @ step
        self.work += len(block)
        return step

    def finished(self) -> bool:
        return self.rounds >= self.passes * self.variables

    def model(self) -> dict[str, Any]:
        return {"beta": self.beta.copy()}


def problem() -> tuple[Floats, Floats]:
    rng = np.random.default_rng(2)
    X = rng.normal(size=(60, 8))
    return X, X @ rng.normal(size=8) + rng.normal(size=60)


@pytest.mark.parametrize("checkpoint_work", [10**9, 50])
def test_forty_lines_solve_a_problem_of_ones_own(checkpoint_work: int) -> None:
    X, y = problem()
    program = NonNegative(X, y, passes=60)
    run(Alone(), program, policy=Cyclic(8, 1), checkpoint_work=checkpoint_work)
    np.testing.assert_allclose(program.beta, scipy.optimize.nnls(X, y)[0], atol=1e-8)


def test_a_policy_that_the_program_cannot_serve_is_refused() -> None:
    X, y = problem()
    with pytest.raises(Misuse, match="NonNegative tells no support"):
        run(Alone(), NonNegative(X, y, passes=1), policy="working-set")
    with pytest.raises(Misuse, match="no policy 'best'"):
        run(Alone(), NonNegative(X, y, passes=1), policy="best")


class Scheduled(NonNegative):
    """The same, its blocks picked by itself."""

    block: Any = None

    def schedule(self, policy: Any) -> Any:
        return self.block


@pytest.mark.parametrize("block", [[8], [-1], [1, 1], [[0, 1]], [0.5], ["a"]])
@pytest.mark.parametrize("whole", [False, True])
def test_a_block_that_is_none_is_refused(block: Any, whole: bool) -> None:
    program = Scheduled(*problem(), passes=60)
    program.block = block
    program.start(None)
    with pytest.raises(Misuse, match=r"Scheduled: a block is an array .* from 0 to 7, not"):
        if whole:
            Lead(program, Cyclic(8, 1), Segment(0, 10**9), range(1, 3))
        else:
            run(Alone(), program, policy=Cyclic(8, 1))


def test_a_list_is_a_block_as_well() -> None:
    X, y = problem()
    program = Scheduled(X, y, passes=1)
    program.block = [3]
    run(Alone(), program, policy=Cyclic(8, 1))
    assert np.count_nonzero(program.beta) <= 1
