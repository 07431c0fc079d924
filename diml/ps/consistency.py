"""When a worker may read: the consistency models and the vector clock. Pure.

Owns the bound on staleness and nothing else. A worker's clock is the number of clocks that it has
finished. A read at clock c under staleness s sees every update of the clocks 0..c-s-1 of all
workers (Ho et al., NIPS 2013), so it may be answered once the slowest worker has finished c-s.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from diml.errors import Misuse

MODELS = ("bsp", "ssp", "essp", "asp")
_BOUNDED = ("ssp", "essp")
# More than any clock.
_ANY_LAG = 2**62


@dataclass(frozen=True, slots=True)
class Consistency:
    """A model and its bound.

    bsp: each clock is a transaction of all workers (staleness 0). ssp: bounded staleness; updates
    may be seen early. essp: the same bound; servers push what a worker has once asked for. asp: no
    bound.
    """

    model: str
    staleness: int

    def __str__(self) -> str:
        return f"{self.model}({self.staleness})" if self.model in _BOUNDED else self.model

    @property
    def buffered(self) -> bool:
        """Whether updates wait at the server until the clock closes."""
        return self.model == "bsp"

    @property
    def window_clocks(self) -> int | None:
        """Clocks that a worker may have finished and not yet seen acknowledged. None: any."""
        if self.model == "asp":
            return None
        return 1 if self.buffered else self.staleness + 2

    @property
    def lag_clocks(self) -> int:
        """Clocks by which a read may be ahead of the slowest worker."""
        return _ANY_LAG if self.model == "asp" else self.staleness

    def readable(self, clock: int, slowest: int) -> bool:
        """Whether a read at `clock` may be answered when the slowest worker stands at `slowest`."""
        return slowest >= clock - self.lag_clocks


def parse_consistency(text: str | None, staleness: int) -> Consistency:
    """Read a model: bsp, ssp(s), essp(s) or asp; None stands for bsp at staleness 0, else ssp.

    Raises Misuse for anything else, and for a staleness that contradicts the model.
    """
    _check_staleness(staleness)
    match = re.fullmatch(r"(\w+?)(?:\(([0-9]+)\))?", str(text or "ssp"))
    model = match[1] if match else ""
    if match is None or model not in MODELS:
        raise Misuse(f"consistency {text!r} is none of bsp, ssp(s), essp(s), asp")
    if match[2] is not None:
        if model not in _BOUNDED:
            raise Misuse(f"consistency {text!r}: {model} takes no number")
        if staleness not in (0, int(match[2])):
            raise Misuse(f"consistency {text!r} contradicts staleness {staleness}")
        staleness = int(match[2])
        _check_staleness(staleness)
    if model == "bsp" and staleness:
        raise Misuse(f"consistency bsp has staleness 0, not {staleness}")
    if model == "asp" and staleness:
        raise Misuse(f"consistency asp has no bound: leave out staleness {staleness}, or take ssp")
    if model == "ssp" and staleness == 0:
        model = "bsp"
    return Consistency(model, staleness)


def _check_staleness(staleness: object) -> None:
    """Refuse what is no number of clocks, or no 64-bit number, as servers count. Raises Misuse."""
    whole = isinstance(staleness, int) and not isinstance(staleness, bool)
    if not whole or not 0 <= staleness < _ANY_LAG:  # type: ignore[operator]
        raise Misuse(f"staleness {staleness!r} is not a whole number from 0 to 2^62 - 1")


def slowest(clocks: Sequence[int]) -> int:
    """Clocks that every worker has finished."""
    return min(clocks)
