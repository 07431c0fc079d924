"""Minimisation of f(w) + λ₁‖w‖₁ for smooth f, by L-BFGS (OWL-QN where λ₁ > 0). Pure.

Owns the iterates and the history of curvature. Must not know what f is nor who computes it: each
step is given a function that returns f and its gradient at a point. Invariants: arrays of a state
are never changed in place, so that a state may be kept by reference; a step depends on its state
and on f only, so that all who see the same f see the same iterates.

Sources: Nocedal & Wright, Numerical Optimization (2006), algorithm 7.4; Andrew & Gao, Scalable
training of L1-regularized log-linear models (2007); the search along a line by bisection for the
weak Wolfe conditions is that of Lewis & Overton (2013).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Bools: TypeAlias = NDArray[np.bool_]
Smooth: TypeAlias = Callable[[Floats], tuple[float, Floats]]

_SUFFICIENT = 1e-4  # of the decrease that the slope promises (Armijo)
_CURVATURE = 0.9  # of the slope may be left (weak Wolfe)
_TRIALS = 40  # halvings take a step below the resolution of float64


@dataclass(frozen=True, slots=True)
class State:
    """Where the minimisation stands.

    Attributes:
        w: the iterate, float64 (d,).
        smooth: f(w), and `gradient`, (d,), its gradient, both without the penalty.
        steps: iterations done.
        evaluations: of f so far.
        moves: the last differences of iterates, `turns` those of gradients, oldest first.
        done: no further step would help.
        first: largest element of the pseudo-gradient at the start, which the tolerance refers to.
    """

    w: Floats
    smooth: float
    gradient: Floats
    steps: int
    evaluations: int
    moves: tuple[Floats, ...]
    turns: tuple[Floats, ...]
    done: bool
    first: float

    def tree(self) -> dict[str, Any]:
        """As a checkpoint may hold it; shares the arrays."""
        return {name: getattr(self, name) for name in self.__slots__}

    @classmethod
    def of(cls, tree: dict[str, Any]) -> State:
        """The inverse of `tree`."""
        return cls(**{**tree, "moves": tuple(tree["moves"]), "turns": tuple(tree["turns"])})


def start(w: Floats, smooth: Smooth, l1: float) -> State:
    """The state at a point, float64 (d,)."""
    value, gradient = smooth(w)
    first = float(np.abs(pseudo_gradient(w, gradient, l1)).max(initial=0.0))
    return State(w, value, gradient, 0, 1, (), (), first == 0.0, first)


def pseudo_gradient(w: Floats, gradient: Floats, l1: float) -> Floats:
    """The subgradient of f + λ₁‖·‖₁ that is nearest to zero (Andrew & Gao, eq. 4)."""
    if l1 == 0.0:
        return gradient
    at_zero = np.sign(gradient) * np.maximum(np.abs(gradient) - l1, 0.0)
    return np.where(w == 0.0, at_zero, gradient + l1 * np.sign(w))


def step(state: State, smooth: Smooth, l1: float, *, memory: int, tolerance: float) -> State:
    """One iteration. Returns a state that is `done` if the pseudo-gradient is below `tolerance`
    times the first one, or if no step along the direction makes the objective smaller.

    Args:
        smooth: gives f and its gradient at a point.
        memory: pairs of differences to keep.
    """
    pseudo = pseudo_gradient(state.w, state.gradient, l1)
    free = (state.w != 0.0) | (pseudo != 0.0)
    direction = -_times_inverse_hessian(pseudo, state.moves, state.turns, free)
    if l1 > 0.0:
        # Andrew & Gao align every element. That of a variable which is not zero may have either
        # sign: so the search needs a third of the iterations (361 on a9a, not over 1,000).
        direction[(state.w == 0.0) & (direction * pseudo >= 0.0)] = 0.0
    slope = float(direction @ pseudo)
    if not slope < 0.0:
        direction, slope = -pseudo, -float(pseudo @ pseudo)
    found = _search(state, smooth, l1, pseudo, direction, slope)
    if found is None:
        return replace(state, done=True)
    w, value, gradient, trials = found
    if not value + l1 * float(np.abs(w).sum()) < state.smooth + l1 * float(np.abs(state.w).sum()):
        return replace(state, done=True)  # float64 resolves no further decrease
    move, turn = w - state.w, gradient - state.gradient
    moves, turns = state.moves, state.turns
    if _curved(move, turn):
        moves, turns = (*moves, move)[-memory:], (*turns, turn)[-memory:]
    left = float(np.abs(pseudo_gradient(w, gradient, l1)).max())
    done = left <= tolerance * state.first
    evaluations = state.evaluations + trials
    return State(w, value, gradient, state.steps + 1, evaluations, moves, turns, done, state.first)


def _times_inverse_hessian(
    vector: Floats, moves: tuple[Floats, ...], turns: tuple[Floats, ...], free: Bools
) -> Floats:
    """The two loops of L-BFGS among the free variables; those at rest at zero stay out, as does
    the curvature that they had. Without a history a step of length one is tried first."""
    pairs = [(s * free, y * free) for s, y in zip(moves, turns, strict=True)]
    curved = [(s, y, 1.0 / float(s @ y)) for s, y in pairs if _curved(s, y)]
    if not curved:
        return vector / max(float(np.linalg.norm(vector)), 1e-300)
    q = vector.copy()
    weights = []
    for s, y, rho in reversed(curved):
        alpha = rho * float(s @ q)
        q -= alpha * y
        weights.append(alpha)
    s, y, rho = curved[-1]
    q /= rho * float(y @ y)
    for (s, y, rho), alpha in zip(curved, reversed(weights), strict=True):
        q += (alpha - rho * float(y @ q)) * s
    return q


def _curved(move: Floats, turn: Floats) -> bool:
    """Whether a pair has curvature enough: without it the positive definiteness would break."""
    return float(move @ turn) > 1e-12 * float(turn @ turn)


def _search(
    state: State, smooth: Smooth, l1: float, pseudo: Floats, direction: Floats, slope: float
) -> tuple[Floats, float, Floats, int] | None:
    """A point along the direction that is good enough, f and gradient there, evaluations used.

    With a penalty the line bends at the borders of the orthant that the step is taken in, and
    only the decrease is asked for, as in OWL-QN.
    """
    orthant = np.where(state.w == 0.0, np.sign(-pseudo), np.sign(state.w))
    objective = state.smooth + l1 * float(np.abs(state.w).sum())
    low, high, length = 0.0, np.inf, 1.0
    for trial in range(1, _TRIALS + 1):
        w = state.w + length * direction
        if l1 > 0.0:
            w[w * orthant < 0.0] = 0.0
        value, gradient = smooth(w)
        promised = float(pseudo @ (w - state.w)) if l1 > 0.0 else length * slope
        reached = value + l1 * float(np.abs(w).sum())
        if not reached <= objective + _SUFFICIENT * promised:
            high = length
        elif l1 == 0.0 and float(gradient @ direction) < _CURVATURE * slope:
            low = length
        else:
            return w, value, gradient, trial
        length = 2.0 * low if high == np.inf else 0.5 * (low + high)
    return None
