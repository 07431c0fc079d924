"""What a server does with an update: the rule of a table.

Owns the rules by name and how each is applied to the rows of a shard. Pure. Must not know clocks
or workers. Invariant: a rule's result depends on the rows, its state, its step count and the
update only, so that a replica, or the same update after a repair, gives the same bits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from numpy.typing import NDArray

from diml.errors import Misuse
from diml.kernels.rows import scatter_add
from diml.ps.tables import TableSpec

Rows = NDArray[Any]


@dataclass(frozen=True, slots=True)
class Rule:
    """How updates change rows.

    Attributes:
        slots: numbers of state per parameter.
        additive: whether a worker may show its own pending updates by adding them, and a server
            apply the workers' updates one by one instead of in one step on their sum.
        apply: (values, state, base, ids, updates, steps) changes the rows `ids - base` in place.
    """

    slots: int
    additive: bool
    apply: Callable[[Rows, Rows, int, NDArray[Any], Rows, int], None]


def _add(
    values: Rows, state: Rows, base: int, ids: NDArray[Any], updates: Rows, steps: int
) -> None:
    scatter_add(values, base, ids, updates)


_RULES = {"add": Rule(slots=0, additive=True, apply=_add)}


def rule_of(spec: TableSpec) -> Rule:
    """The rule of a table. Raises Misuse, naming the table, if there is none of that name."""
    if spec.rule not in _RULES:
        raise Misuse(f"table {spec.name!r}: rule {spec.rule!r} is none of {', '.join(_RULES)}")
    return _RULES[spec.rule]
