"""Logistic regression by consensus ADMM on Allreduce (`--method admm`).

Owns the loop: each worker fits its own rows near the common weights, the fits are averaged, and
the penalty is applied to the average (Boyd et al., Distributed optimization and statistical
learning via ADMM, 2011, §7.1 and §8.2.1). The common weights are the model, a worker's own fit
and its dual variables are its local state, so a replacement goes on with the very numbers of the
one that died.
"""

from __future__ import annotations

from argparse import Namespace
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diml.jobs.logistic_batch import Run
from diml.jobs.quasi_newton import start, step

Floats: TypeAlias = NDArray[np.float64]

_TOLERANCE = 1e-4
_FIT_STEPS = 50
_FIT_TOLERANCE = 1e-3  # a fit is better than the last one by this factor
_UNBALANCED, _FACTOR = 10.0, 2.0  # when ρ changes, and by how much (Boyd, §3.4.1)


@dataclass(frozen=True, slots=True)
class Common:
    """What all workers know alike: the weights z, float64 (d,), and the weight ρ of agreeing."""

    z: Floats
    rho: float
    steps: int
    done: bool

    def tree(self) -> dict[str, Any]:
        """As a checkpoint may hold it."""
        return {name: getattr(self, name) for name in self.__slots__}


@dataclass(frozen=True, slots=True)
class Own:
    """A worker's own fit x and its scaled dual variables u, float64 (d,) each."""

    x: Floats
    u: Floats


def shrunk(mean: Floats, l1: float, l2: float, weight: float) -> Floats:
    """argmin over z of λ₁‖z‖₁ + λ₂‖z‖²/2 + weight·‖z − mean‖²/2."""
    pulled = np.sign(mean) * np.maximum(np.abs(mean) - l1 / weight, 0.0)
    return np.asarray(pulled * (weight / (weight + l2)), np.float64)


def fit(run: Run, own: Own, common: Common) -> Floats:
    """argmin over x of this worker's part of the mean loss + ρ‖x − z + u‖²/2."""
    target = common.z - own.u

    def near(x: Floats) -> tuple[float, Floats]:
        sums = run.part.loss_gradient(x)
        away = x - target
        value = float(sums[-2]) / run.total + 0.5 * common.rho * float(away @ away)
        return value, sums[:-2] / run.total + common.rho * away

    state = start(own.x, near, 0.0)
    while not state.done and state.steps < _FIT_STEPS:
        state = step(state, near, 0.0, memory=10, tolerance=_FIT_TOLERANCE)
    return state.w


def iterate(run: Run, own: Own, common: Common, tolerance: float) -> tuple[Own, Common]:
    """One iteration; one allreduce of d numbers and one of three."""
    workers = run.job.size
    x = fit(run, own, common)
    mean = run.allreduce(x + own.u) / workers
    z = shrunk(mean, run.l1, run.l2, workers * common.rho)
    u = own.u + x - z
    apart, scale, dual_scale = run.allreduce(np.array([(x - z) @ (x - z), x @ x, u @ u]))
    primal = float(np.sqrt(apart))
    dual = common.rho * float(np.sqrt(workers) * np.linalg.norm(z - common.z))
    least_primal = tolerance * max(float(np.sqrt(scale)), np.sqrt(workers) * np.linalg.norm(z))
    least_dual = tolerance * common.rho * float(np.sqrt(dual_scale))
    done = bool(primal <= least_primal and dual <= least_dual)
    rho = common.rho
    if primal > _UNBALANCED * dual:
        rho *= _FACTOR
    elif dual > _UNBALANCED * primal:
        rho /= _FACTOR
    after = replace(common, z=z, rho=rho, steps=common.steps + 1, done=done)
    return Own(x, u * (common.rho / rho)), after


def train(run: Run, flags: Namespace) -> None:
    """Train to the end: until the residuals are below `--tolerance`, or `--num_iterations`."""
    tolerance = _TOLERANCE if flags.tolerance is None else flags.tolerance
    version, model, local = run.load()
    if version == 0:
        own = Own(np.zeros(run.cols), np.zeros(run.cols))
        common = Common(np.zeros(run.cols), flags.rho, 0, False)
    else:
        own, common = Own(local["x"], local["u"]), Common(**model)
    while True:
        # First in every version, so that a replacement makes the same calls as the others.
        losses = run.losses(common.steps, common.z)
        run.tell(losses)
        if common.done or common.steps >= flags.num_iterations:
            break
        own, common = iterate(run, own, common, tolerance)
        run.checkpoint(common.tree(), {"x": own.x, "u": own.u})
    run.finish(losses, common.z, common.done)
