"""Which variables are updated next: the policies, as pure code.

Owns the choice of blocks and nothing else: no MPI, no clock, no data. A policy's state and its
random generator are values that go into checkpoints. Given the same seed and the same answers it
picks the same blocks on every worker, so each worker schedules for itself.

  cyclic               0 … U−1, U … 2U−1, and so on
  random               U distinct variables (Shotgun: Bradley et al. 2011)
  priority             U drawn in proportion to |Δβ| + η (STRADS: Lee et al. 2014)
  priority+dependency  U' drawn so, then those too correlated with one already kept are dropped
  working-set          the worst violators of optimality, with all that is non-zero

The first four are as published: their blocks are updated from one stale residual ("jacobi"), and
`exact=True` makes the update sequential inside the block instead ("sweep"). A working set is
solved to a gap ("solve").
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diml.errors import Misuse
from diml.strads.dependency import independent

Integers = NDArray[np.int64]
Floats = NDArray[np.float64]


class Answers(Protocol):
    """What a policy may ask its program."""

    def correlations(self, candidates: Integers) -> Floats: ...
    def support(self) -> Integers: ...
    def violations(self, most: int) -> tuple[Integers, Floats]: ...


class Policy(Protocol):
    """A policy: `update` says how its blocks are meant to be updated; `in_flight` is set before
    each draw to the variables whose results are not in yet, which must not be picked."""

    update: str
    in_flight: Integers

    def next_block(self, program: Answers) -> Integers:
        """The variables to update next, int64 (k,), the same on all workers."""

    def moved(self, block: Integers, change: Floats | None) -> None:
        """Told after each update: how far each variable of the block moved, float64 (k,)."""

    def halve(self) -> bool:
        """Take blocks half as large, after a divergence; False if they cannot be smaller."""

    def state(self) -> dict[str, Any]:
        """What a checkpoint has to keep of the policy."""

    def restore(self, state: dict[str, Any]) -> None:
        """Be as when `state()` gave this."""


class _Blocks:
    """What the published policies share: p variables, blocks of U, a seeded generator."""

    def __init__(self, variables: int, block: int = 32, seed: int = 0, exact: bool = False) -> None:
        if variables < 1 or block < 1:
            raise Misuse(f"a policy needs variables and a block size, not {variables} and {block}")
        self.variables = variables
        self.block = min(block, variables)
        self.update = "sweep" if exact else "jacobi"
        self.in_flight = np.empty(0, np.int64)
        self._random = np.random.default_rng(seed)

    def _free(self, block: Integers) -> Integers:
        """Those of a block that are not in flight."""
        return block[~np.isin(block, self.in_flight)] if len(self.in_flight) else block

    def moved(self, block: Integers, change: Floats | None) -> None:
        """Hear how far the variables of a block moved."""

    def halve(self) -> bool:
        """Halve the block after a divergence; False where it is one variable already."""
        smaller = max(1, self.block // 2)
        changed = smaller < self.block
        self.block = smaller
        return changed

    def state(self) -> dict[str, Any]:
        return {"block": self.block, "random": deepcopy(self._random)}

    def restore(self, state: dict[str, Any]) -> None:
        self.block = int(state["block"])
        self._random = deepcopy(state["random"])


class Cyclic(_Blocks):
    """Blocks in order, round and round."""

    _at = 0

    def next_block(self, program: Answers) -> Integers:
        block = (self._at + np.arange(self.block, dtype=np.int64)) % self.variables
        self._at = int((self._at + self.block) % self.variables)
        return self._free(block)

    def state(self) -> dict[str, Any]:
        return super().state() | {"at": self._at}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._at = int(state["at"])


class Random(_Blocks):
    """U distinct variables, each set of U equally likely, in random order."""

    def next_block(self, program: Answers) -> Integers:
        drawn = self._random.choice(self.variables, self.block, replace=False)
        return self._free(drawn.astype(np.int64))


class Priority(_Blocks):
    """U draws with replacement in proportion to |Δβ| + η; duplicates merge, large ones first.

    η = 0.01 · mean of the non-zero |Δβ| (0.1 where at most 10 are non-zero), and the first
    3p/U blocks are uniform, both as in the released STRADS code.
    """

    def __init__(self, variables: int, block: int = 32, seed: int = 0, exact: bool = False) -> None:
        super().__init__(variables, block, seed, exact)
        self._weight = np.zeros(variables)
        self._uniform = 3 * variables // self.block

    def draw(self, count: int) -> Integers:
        """`count` draws, duplicates merged, in falling order of weight (ties: drawn first)."""
        if self._uniform > 0:
            self._uniform -= 1
            drawn = self._random.integers(0, self.variables, count)
        else:
            live = self._weight[self._weight > 0.0]
            eta = 0.01 * float(live.mean()) if len(live) > 10 else 0.1
            edges = np.cumsum(self._weight + eta)
            drawn = np.searchsorted(edges, self._random.random(count) * edges[-1], side="right")
            drawn = np.minimum(drawn, self.variables - 1)
        drawn, first = np.unique(drawn, return_index=True)
        drawn = drawn[np.lexsort((first, -self._weight[drawn]))].astype(np.int64)
        return self._free(drawn)

    def next_block(self, program: Answers) -> Integers:
        return self.draw(self.block)

    def moved(self, block: Integers, change: Floats | None) -> None:
        if change is not None:
            self._weight[block] = np.abs(change)

    def state(self) -> dict[str, Any]:
        return super().state() | {"weight": self._weight.copy(), "uniform": self._uniform}

    def restore(self, state: dict[str, Any]) -> None:
        super().restore(state)
        self._weight = np.array(state["weight"])
        self._uniform = int(state["uniform"])


class PriorityDependency(Priority):
    """`Priority` over `candidates` draws, of which a block keeps mutually uncorrelated ones.

    Greedy in order of weight: a variable stays if its |correlation| with every one kept so far is
    below `rho`; at most U stay. The released code draws as many candidates as there are places,
    the paper more. Never are more drawn than half the variables: where all of them stand against
    each other, those of little weight that are correlated with a heavy one would never move.
    """

    def __init__(
        self,
        variables: int,
        block: int = 32,
        seed: int = 0,
        exact: bool = False,
        candidates: int = 0,
        rho: float = 0.1,
    ) -> None:
        super().__init__(variables, block, seed, exact)
        if not 0.0 < rho <= 1.0:
            raise Misuse(f"the correlation threshold must be in (0, 1], not {rho:g}")
        self._surplus = max(candidates or 2 * block, block) / block
        self._rho = rho
        self.drawn = 0
        self.kept = 0

    def next_block(self, program: Answers) -> Integers:
        most = max(1, self.variables // 2)
        drawn = self.draw(min(int(self.block * self._surplus), most))
        busy = len(self.in_flight)
        correlation = program.correlations(np.concatenate([self.in_flight, drawn]))
        near = (correlation[busy:, :busy] >= self._rho).any(axis=1)
        free = drawn[~near]
        among = correlation[busy:, busy:][np.ix_(~near, ~near)]
        block = free[independent(among, self._rho, self.block)]
        self.drawn += len(drawn)
        self.kept += len(block)
        return block


class WorkingSet:
    """The non-zero variables and the worst violators, at most max(first, growth · non-zeros)."""

    update = "solve"

    def __init__(self, first: int = 100, growth: float = 3.0) -> None:
        if first < 1 or growth <= 1.0:
            raise Misuse(f"a working set needs first ≥ 1 and growth > 1, not {first}, {growth:g}")
        self.in_flight = np.empty(0, np.int64)
        self._first = first
        self._growth = growth

    def limit(self, kept: int) -> int:
        """How large the next block may be when `kept` variables are in it already."""
        return max(self._first, int(self._growth * kept))

    def next_block(self, program: Answers) -> Integers:
        support = program.support()
        room = self.limit(len(support)) - len(support)
        ids, scores = program.violations(room)
        return np.sort(np.concatenate([support, worst(ids, scores, room)]))

    def moved(self, block: Integers, change: Floats | None) -> None:
        """Priority is the violation itself: there is nothing to remember."""

    def halve(self) -> bool:
        return False

    def state(self) -> dict[str, Any]:
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """There is no state."""


def worst(ids: Integers, scores: Floats, count: int) -> Integers:
    """The `count` ids of highest score; ties go to the lower id, so ranks do not matter."""
    if len(ids) > count:
        if count <= 0:
            return ids[:0]
        edge = np.partition(scores, len(scores) - count)[len(scores) - count]
        likely = np.flatnonzero(scores >= edge)
        order = np.lexsort((ids[likely], -scores[likely]))[:count]
        ids = ids[likely[order]]
    return ids


def scheduled(program: Any, policy: Policy) -> Integers | None:
    """The block that a program schedules; None ends the run. A working set is DiML's own and taken
    as it is.

    Raises:
        Misuse: it is not distinct variables of the program.
    """
    block = program.schedule(policy)
    if block is None or policy.update == "solve":
        return None if block is None else np.asarray(block, np.int64)
    asked, count = np.asarray(block), program.variables
    if asked.size == 0:
        return np.empty(0, np.int64)
    if asked.ndim == 1 and asked.dtype.kind in "iu" and 0 <= asked.min() <= asked.max() < count:
        rising = np.sort(asked)
        if (rising[1:] > rising[:-1]).all():
            return asked.astype(np.int64, copy=False)
    shown = np.array2string(asked, threshold=8).replace("\n", "")
    raise Misuse(
        f"{type(program).__name__}: a block is an array (k,) of distinct variables, whole numbers "
        f"from 0 to {count - 1}, not {shown}"
    )


POLICIES: dict[str, type] = {
    "cyclic": Cyclic,
    "random": Random,
    "priority": Priority,
    "priority+dependency": PriorityDependency,
    "working-set": WorkingSet,
}


def policy_by_name(name: str, variables: int, **options: Any) -> Policy:
    """The policy called `name`; `options` go to it (block, seed, exact, candidates, rho).

    Raises:
        Misuse: no such policy.
    """
    if name not in POLICIES:
        raise Misuse(f"no policy {name!r}: choose from {', '.join(POLICIES)}")
    if name == "working-set":
        return WorkingSet(**options)
    policy: Policy = POLICIES[name](variables, **options)
    return policy
