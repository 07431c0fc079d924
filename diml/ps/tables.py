"""What a table is: its definition, which server holds which rows, and its first values.

Owns the definition that every process must share to make the same table by itself. Pure. Must
not know messages. Invariant: the first values depend on (seed, table, row) only, not on the
number of servers or workers, nor on the range that is asked for.
"""

from __future__ import annotations

import json
import math
import zlib
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from diml.errors import Misuse

DTYPES = ("float32", "float64", "int32", "int64")
Ids = NDArray[np.int64]
_WORDS_PER_BLOCK = 4
_MESSAGE_BYTES_MAX = 2**31 - 2**20
# Distributions and the numbers that they take.
_INITS = {"zeros": 0, "constant": 1, "uniform": 2, "normal": 2}


@dataclass(frozen=True)
class TableSpec:
    """Definition of a table. Raises Misuse where it makes no sense.

    Attributes:
        name: its name; the id on the wire is the CRC-32 of it.
        rows, cols: its shape.
        dtype: float32, float64, int32 or int64.
        init: ("zeros",), ("constant", x), ("uniform", low, high) or ("normal", mean, deviation).
        seed: of the first values.
        rule: what the server does with an update (see `diml.ps.rules`).
        options: numbers of the rule, by name.
        sparse: whether only cells that were updated are kept; all begin as zeros.
    """

    name: str
    rows: int
    cols: int
    dtype: str = "float32"
    init: tuple[str | float, ...] = ("zeros",)
    seed: int = 0
    rule: str = "add"
    options: tuple[tuple[str, float], ...] = ()
    sparse: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not self.name:
            raise Misuse(f"a table's name is a text that is not empty, not {self.name!r}")
        if not isinstance(self.seed, int):
            raise Misuse(f"table {self.name!r}: seed = {self.seed!r} is not a whole number")
        for what, number in (("rows", self.rows), ("cols", self.cols)):
            if not isinstance(number, int) or isinstance(number, bool) or number < 1:
                raise Misuse(f"table {self.name!r}: {what} = {number!r} is not a positive number")
        if self.dtype not in DTYPES:
            raise Misuse(
                f"table {self.name!r}: dtype {self.dtype!r} is none of {', '.join(DTYPES)}"
            )
        kind, *numbers = self.init
        if kind not in _INITS or len(numbers) != _INITS[str(kind)]:
            raise Misuse(
                f"table {self.name!r}: init {self.init!r} is none of ('zeros',), ('constant', x), "
                "('uniform', low, high), ('normal', mean, deviation)"
            )
        if not all(isinstance(x, int) or math.isfinite(float(x)) for x in numbers):
            raise Misuse(f"table {self.name!r}: init {self.init!r} has a number that is not finite")
        if kind == "constant" and not self._holds(numbers[0]):
            raise Misuse(f"table {self.name!r}: {self.dtype} cannot hold init {numbers[0]!r}")
        if (kind == "uniform" and self.init[2] < self.init[1]) or (  # type: ignore[operator]
            kind == "normal" and self.init[2] < 0  # type: ignore[operator]
        ):
            raise Misuse(f"table {self.name!r}: init {self.init!r} is no distribution")
        if self.sparse and (kind != "zeros" or self.rows * self.cols >= 2**63):
            raise Misuse(f"table {self.name!r}: a sparse one begins as zeros, of < 2^63 cells")

    def _holds(self, number: Any) -> bool:
        """Whether the dtype has this number: whole ones exactly, others to its precision."""
        dtype = self.numpy_dtype
        if dtype.kind == "f":
            return bool(abs(number) <= float(np.finfo(dtype).max))
        limits = np.iinfo(dtype)
        return bool(number == int(number) and limits.min <= int(number) <= limits.max)

    @cached_property
    def width(self) -> int:
        """Numbers that go over the wire for one id: a row's, or a cell's."""
        return 1 if self.sparse else self.cols

    @cached_property
    def ids_max(self) -> int:
        """Rows that a call may name: an MPI message counts its bytes in an int."""
        return _MESSAGE_BYTES_MAX // (8 + 2 * self.width * self.numpy_dtype.itemsize)

    @cached_property
    def id(self) -> int:
        """The table's number on the wire."""
        return zlib.crc32(self.name.encode())

    @cached_property
    def numpy_dtype(self) -> np.dtype[Any]:
        """The dtype as NumPy has it."""
        return np.dtype(self.dtype)

    def to_json(self) -> str:
        """The definition as it travels."""
        return self._json

    @cached_property
    def _json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> TableSpec:
        """A definition that has travelled."""
        fields = json.loads(text)
        fields["init"] = tuple(fields["init"])
        fields["options"] = tuple((name, value) for name, value in fields["options"])
        return cls(**fields)


def spec_of_init(init: Any) -> tuple[str | float, ...]:
    """What a caller gave as `init`, as a tuple: a name, a number, or a sequence. Raises Misuse."""
    if isinstance(init, str):
        return (init,)
    if isinstance(init, int | float | np.number):
        # A whole number stays one: a float has not all that an int64 can be.
        return ("constant", init.item() if isinstance(init, np.number) else init)
    try:
        return (str(init[0]), *(float(x) for x in init[1:]))
    except (TypeError, ValueError, IndexError, KeyError, OverflowError):
        raise Misuse(
            f"init {init!r} is neither a name, a number, nor a name with numbers"
        ) from None


def row_range(rows: int, shard: int, shards: int) -> tuple[int, int]:
    """The ids [low, high) that a shard holds."""
    return shard * rows // shards, (shard + 1) * rows // shards


def row_bounds(rows: int, shards: int) -> NDArray[np.int64]:
    """The limits of all shards: shard p holds [bounds[p], bounds[p + 1])."""
    return np.array([p * rows // shards for p in range(shards + 1)], np.int64)


def first_values(spec: TableSpec, low: int, high: int) -> NDArray[Any]:
    """Start values of the rows [low, high): (high - low, cols).

    Row r takes the words r·b.. of a Philox counter stream keyed by (seed, table id), b being the
    words of a row rounded up to whole blocks: any range can be made without the ones before.
    """
    shape = (high - low, spec.cols)
    kind, *numbers = spec.init
    if kind in ("zeros", "constant"):
        return np.full(shape, numbers[0] if numbers else 0, spec.numpy_dtype)
    blocks = -(-spec.cols // _WORDS_PER_BLOCK)
    stream = np.random.Philox(key=[spec.seed % 2**64, spec.id], counter=[low * blocks, 0, 0, 0])
    words = stream.random_raw((high - low) * blocks * _WORDS_PER_BLOCK)
    words = words.reshape(high - low, blocks * _WORDS_PER_BLOCK)[:, : spec.cols]
    # 53 bits, in the middle of their interval: never 0 and never 1.
    unit = ((words >> np.uint64(11)).astype(np.float64) + 0.5) * 2.0**-53
    a, b = (float(x) for x in numbers)
    if kind == "uniform":
        values = a + (b - a) * unit
    else:
        from scipy.special import ndtri  # not at the top: a tenth of a second in every process

        values = a + b * ndtri(unit)
    return np.ascontiguousarray(values, dtype=spec.numpy_dtype)


def same_definition(known: TableSpec, asked: TableSpec) -> None:
    """Raise Misuse, naming both, if one name has two definitions or one id two names."""
    if known == asked:
        return
    if known.name != asked.name:
        raise Misuse(f"tables {known.name!r} and {asked.name!r} share an id: rename one of them")
    pairs = zip(asdict(known).items(), asdict(asked).values(), strict=True)
    apart = [f"{field} {a!r} against {b!r}" for (field, a), b in pairs if a != b]
    raise Misuse(f"table {known.name!r} is defined in two ways: {'; '.join(apart)}")


def union(groups: Sequence[Sequence[TableSpec]]) -> tuple[TableSpec, ...]:
    """All definitions that anyone has, each once, by id."""
    found = {spec.id: spec for group in groups for spec in group}
    return tuple(found[key] for key in sorted(found))


class Piece(NamedTuple):
    """The part of a list of ids that one server holds; `places` are their indices in the list."""

    server: int
    ids: Ids
    places: slice | Ids


def split(spec: TableSpec, servers: int, ids: Ids, cells: bool = False) -> list[Piece]:
    """Cut a list of ids (of cells: row·cols + column) into the servers' parts; order within a
    part is kept."""
    if servers == 1:
        return [Piece(0, ids, slice(0, len(ids)))] if len(ids) else []
    bounds = row_bounds(spec.rows, servers) * (spec.cols if cells else 1)
    if len(ids) < 2 or bool((ids[1:] >= ids[:-1]).all()):
        cuts = np.searchsorted(ids, bounds)
        spans = ((server, cuts[server], cuts[server + 1]) for server in range(servers))
        return [Piece(s, ids[low:high], slice(low, high)) for s, low, high in spans if high > low]
    owners = np.searchsorted(bounds, ids, side="right") - 1
    order = np.argsort(owners, kind="stable")
    cuts = np.searchsorted(owners[order], np.arange(servers + 1))
    pieces = []
    for server in range(servers):
        places = order[cuts[server] : cuts[server + 1]]
        if len(places):
            pieces.append(Piece(server, ids[places], places))
    return pieces
