"""How a program opens its parameter server: the options of `job.parameter_server`.

Owns their names, defaults and ranges. Pure. Must not know what is done with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any

from diml.errors import Misuse
from diml.ps.checks import check_options
from diml.ps.consistency import Consistency, parse_consistency
from diml.ps.filters import parse_filters


@dataclass(frozen=True)
class Options:
    """The options of `job.parameter_server`. Raises Misuse for what cannot be.

    Attributes:
        staleness: clocks by which a read may miss the updates of the others.
        consistency: bsp, ssp(s), essp(s) or asp; by default bsp at staleness 0, else ssp.
        reject_nonfinite: refuse updates with NaN or infinity.
        row_cache_size: keep up to so many rows of each table (0: all) from one read to the
            next, as long as the bound allows. None: none, but all under essp. Key-value vectors
            are asked for anew each time: what was pushed to them would be missing in kept rows.
        filters: of "keys", "half", and "snappy" or "lz4": see `diml.ps.filters`.
        significance: rows of tables with rule "add" that have changed by less, in all of their
            numbers, stay with the worker (which sees them) until they have changed by more,
            or until `barrier()`. What a worker holds back is lost if it dies. Not under bsp.
        any_workers: this program can go on from a durable checkpoint of another number of
            workers (see `ParameterServer.resumed`), although they had states of their own.
    """

    staleness: int = 0
    consistency: str | None = None
    reject_nonfinite: bool = False
    row_cache_size: int | None = None
    filters: Sequence[str] = ()
    significance: float = 0.0
    any_workers: bool = field(default=False, compare=False)

    def __post_init__(self) -> None:
        check_options(self.row_cache_size, self.significance, self.model.buffered)
        if isinstance(self.filters, str) or not isinstance(self.filters, Sequence):
            raise Misuse(f"filters {self.filters!r} is not a list of names")
        object.__setattr__(self, "filters", tuple(self.filters))
        parse_filters(self.filters)

    @classmethod
    def of(cls, given: Mapping[str, Any]) -> Options:
        """From a caller's keywords. Raises Misuse for one that there is not, too."""
        names = [one.name for one in fields(cls)]
        for name in given:
            if name not in names:
                raise Misuse(f"parameter_server has no option {name!r}; it has {', '.join(names)}")
        return cls(**given)

    @property
    def model(self) -> Consistency:
        """The consistency that both options together ask for."""
        return parse_consistency(self.consistency, self.staleness)

    def check_same(self, other: Options) -> None:
        """Raise Misuse, naming the first option that differs, where the server was opened with
        these and is asked for with others."""
        for one in fields(self):
            before, now = getattr(self, one.name), getattr(other, one.name)
            if one.compare and before != now:
                raise Misuse(
                    f"parameter_server was opened with {one.name}={before!r}, now with {now!r}"
                )
