"""The simulations that `python -m tests.sim` runs, and what each has to offer."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Verdict:
    """What one schedule came to: how it ended, in a few words, and deaths by where they struck."""

    ended: str
    deaths: Counter[str]


@dataclass(frozen=True)
class Simulation:
    """One protocol under seeded schedules.

    Attributes:
        run: plays the schedule of a seed, appending to the trace if one is given; raises
            AssertionError (or a subclass) if a promise is broken.
        points: the ways to die that must have struck at least once in a long run.
        scale: lines of a table of large worlds, or None.
    """

    run: Callable[[int, list[str] | None], Verdict]
    points: tuple[str, ...]
    scale: Callable[[], list[str]] | None = None
