"""The results since the last checkpoint: what a rank that comes back is served from.

Owns the results. They are read-only and lie in buffers from a pool; a commit recycles the buffers
that nobody else holds. Must not know MPI or who asks. Signatures and call sites of all collectives
are kept as well (they are small): they name the culprits when ranks diverge.

Invariants: a result is dropped by `spread` only if every rank has finished it (it lies below the
last collective that could not end before all had come to it) and `copies` ranks keep it. When the
budget cannot be held even so, the oldest results go altogether: then a death before the next
checkpoint cannot be replayed, and the one who asks for a result that is gone is told so.
"""

from __future__ import annotations

import sys
from bisect import bisect_right
from dataclasses import dataclass
from operator import itemgetter
from types import CodeType
from typing import Any, Protocol, TypeAlias

import numpy as np

from diml.allreduce.protocol import HASH_MASK

# Failure-free, histories are compared at every checkpoint, at exit, and so often.
COMPARE_EVERY = 64
# Results that are given to one who is behind, in one go.
BATCH_BYTES = 1 << 26
_HELD_MAX = 64
_FOLD = 64


class Site(tuple[CodeType, int]):
    """A call site as it is taken on the way, cheaply: the code object and the instruction in it."""

    __slots__ = ()

    def __str__(self) -> str:
        code, instruction = self
        for start, end, line in code.co_lines():
            if start <= instruction < end and line is not None:
                return f"{code.co_filename}:{line}"
        return f"{code.co_filename}:{code.co_firstlineno}"


class Result:
    """What a collective gave: an array, or the pickled bytes of objects.

    Attributes:
        form: "array", "object", "objects" (a list by rank), "shift" or "none".
        owner: the writable memory (an array), or bytes, or a list of bytes.
        value: for arrays the read-only view that callers get; it can be handed out many times.
        nbytes: memory held.
        home: the free list of the pool that the buffer goes back to, if it came from one.
        shown: `owner` as the link shows it to MPI, kept with it where calls must be short.

    Of a shift, `owner` is what this rank has sent, which nobody else can send again, and `value`
    what it has received, an array or the bytes of an object: the caller's own.
    """

    __slots__ = ("form", "home", "nbytes", "owner", "shown", "value")

    def __init__(
        self, form: str, owner: Any, nbytes: int, home: list[Result] | None = None
    ) -> None:
        self.form = form
        self.owner = owner
        self.nbytes = nbytes
        self.home = home
        self.shown: Any = None
        self.value: Any = None
        if form == "array":
            self.value = owner.view()
            self.value.flags.writeable = False


class Planned(Protocol):
    """What the log must know of the plan of a short call."""

    signature: int


Quick: TypeAlias = "tuple[Planned, Result, CodeType, int]"
"""A finished short call: its plan, its result, and its call site as in `Site`."""


@dataclass(slots=True)
class Record:
    """A finished collective as it is sent to the one that asks for it.

    Attributes:
        clock: that of the parameter server beside it (None: not in use then).
        early: no clock had ended yet in this version.
    """

    signature: int
    site: str
    result: Result
    clock: int | None = None
    early: bool = True


class Log:
    """The results of the current version (or of the time before `load_checkpoint`).

    Attributes:
        quick: short calls whose entries have not been made yet; see `Quick`. Whoever reads
            anything else of the log finds them entered.
        room: so many short calls may stand there before the histories are to be compared.
        shifts: by sequence, how far each shift went; their results are not alike on all ranks.
        gone_bytes: memory of results that were held before, in earlier versions too.
        entered: collectives in this log, and in those of earlier versions.
    """

    def __init__(self, budget_bytes: int) -> None:
        self.budget_bytes = budget_bytes
        self.quick: list[Quick] = []
        self.room = COMPARE_EVERY - 1
        self._signatures: list[int] = []
        self._sites: list[Site] = []
        self._results: list[Result | None] = []
        self.shifts: dict[int, int] = {}
        self._nbytes = 0
        self.gone_bytes = 0
        self.entered = 0
        self.forgotten = 0
        self._swept = 0
        self._barrier = 0
        self._folded = self._trace = 0
        self._held: list[Result] = []
        # (sequence, clock, early) wherever the clock has moved since.
        self._marks: list[tuple[int, int | None, bool]] = []

    def _enter(self) -> None:
        """Make the entries of the short calls."""
        for plan, result, code, at in self.quick:
            self._signatures.append(plan.signature)
            self._sites.append(Site((code, at)))
            self._results.append(result)
            self._nbytes += result.nbytes
        self.entered += len(self.quick)
        self.quick.clear()
        self._barrier = max(0, len(self._results) - 1)
        self._count()

    def _count(self) -> None:
        self.room = COMPARE_EVERY - 1 - len(self._results) % COMPARE_EVERY

    @property
    def signatures(self) -> list[int]:
        """What was agreed on in each collective since the stage began."""
        if self.quick:
            self._enter()
        return self._signatures

    @property
    def sites(self) -> list[Site]:
        """Where each was called."""
        if self.quick:
            self._enter()
        return self._sites

    @property
    def results(self) -> list[Result | None]:
        """By sequence; None where one was dropped."""
        if self.quick:
            self._enter()
        return self._results

    @property
    def nbytes(self) -> int:
        """Memory of the results that are held."""
        if self.quick:
            self._enter()
        return self._nbytes

    def append(self, signature: int, site: Site, result: Result, synchronising: bool) -> bool:
        """Record the next collective. Returns whether the budget is now exceeded.

        `synchronising`: no rank could finish it before all had begun it.
        """
        if synchronising:
            self._barrier = len(self.results)
        self.signatures.append(signature)
        self._sites.append(site)
        self._results.append(result)
        self._nbytes += result.nbytes
        self.entered += 1
        self._count()
        return self._nbytes > self.budget_bytes

    def trace(self, *more: int) -> int:
        """Hash of all signatures since the stage began and `more`: equal histories, equal traces.

        Worked out when it is asked for, so that it costs a collective nothing; what lies behind
        is folded in pieces of a fixed length, so that it does not matter who asked when.
        """
        signatures = self.signatures
        while len(signatures) - self._folded >= _FOLD:
            piece = signatures[self._folded : self._folded + _FOLD]
            self._trace = hash((self._trace, *piece))
            self._folded += _FOLD
        return hash((self._trace, *signatures[self._folded :], *more)) & HASH_MASK

    def record(self, sequence: int) -> Record | None:
        """The record of a collective, or None if its result is not (or no longer) here."""
        if sequence >= len(self.results):
            return None
        result = self.results[sequence]
        if result is None:
            return None
        at = bisect_right(self._marks, sequence, key=itemgetter(0)) - 1
        clock, early = self._marks[at][1:] if at >= 0 else (None, True)
        site = str(self.sites[sequence])
        return Record(self.signatures[sequence], site, result, clock, early)

    def mark(self, clock: int | None, early: bool) -> None:
        """From the next collective on records have this stamp (see `Record`)."""
        sequence = len(self.results)
        if self._marks and self._marks[-1][0] == sequence:
            del self._marks[-1]
        self._marks.append((sequence, clock, early))

    def following(self, sequence: int, nbytes_max: int) -> list[Record]:
        """The record of a collective that is here, and those after it without a gap, up to a
        total size; none from a shift on."""
        records: list[Record] = []
        nbytes = 0
        while (record := self.record(sequence + len(records))) is not None:
            nbytes += record.result.nbytes
            if records and (nbytes > nbytes_max or sequence + len(records) in self.shifts):
                break
            records.append(record)
        return records

    def spread(self, rank: int, size: int, copies: int) -> None:
        """Drop what others keep, then what is oldest, until the budget holds.

        `copies` ranks keep each result; which ones depends on its sequence alone.
        """
        copies = min(copies, size)
        stride = size // copies
        for sequence in range(self._swept, self._barrier):
            kept = (rank - sequence) % size in range(0, copies * stride, stride)
            if not kept and sequence not in self.shifts:
                self._drop(sequence)
        self._swept = max(self._swept, self._barrier)
        # The newest one stays: it is what a death right now would need.
        while self.nbytes > self.budget_bytes and self.forgotten < len(self.results) - 1:
            self._drop(self.forgotten)
            self.forgotten += 1

    def clear(self) -> None:
        """Begin the next version; buffers that nobody else holds go back to their pool.

        Those still held are looked at again next time: a program mostly lets go of the last
        results of a version in the course of the next one.
        """
        held = []
        for result in (*self._held, *self.results):
            if result is not None and result.home is not None and not _recycle(result, result.home):
                held.append(result)
        self._held = held[-_HELD_MAX:]
        self.gone_bytes += self._nbytes
        self._signatures, self._sites, self._results, self.shifts = [], [], [], {}
        self._marks.clear()
        self._nbytes = self.forgotten = self._swept = self._barrier = 0
        self._folded = self._trace = 0
        self._count()

    def _drop(self, sequence: int) -> None:
        result = self.results[sequence]
        if result is None:
            return
        self.results[sequence] = None
        self._nbytes -= result.nbytes
        self.gone_bytes += result.nbytes
        if result.home is not None:
            _recycle(result, result.home)


def _recycle(result: Result, home: list[Result]) -> bool:
    """Return a buffer to its shelf, unless somebody holds it."""
    # A view of the result refers to the owner (NumPy shortens chains of views), so the owner is
    # free if only the Result, the Result's own view, and what is shown to MPI hold it.
    owner, value = _seen(result)
    free = owner == _FREE[0] + (result.shown is not None) and value == _FREE[1]
    if free:
        home.append(result)
    return free


def _seen(result: Result) -> tuple[int, int]:
    """The references to a result's memory and to its view that are seen here."""
    return sys.getrefcount(result.owner), sys.getrefcount(result.value)


class Pool:
    """Buffers for results, by dtype and shape, so that a collective need not touch fresh pages."""

    def __init__(self) -> None:
        self._free: dict[tuple[Any, tuple[int, ...], bool], list[Result]] = {}

    def shelf(
        self, dtype: np.dtype[Any], shape: tuple[int, ...], shown: bool = False
    ) -> list[Result]:
        """The free buffers of one kind; pop one, or make one with `fresh`. Those of short calls
        are kept apart: they know how MPI is to be shown them."""
        return self._free.setdefault((dtype, shape, shown), [])

    def take(self, dtype: np.dtype[Any], shape: tuple[int, ...]) -> Result:
        """A buffer whose content is undefined."""
        shelf = self.shelf(dtype, shape)
        return shelf.pop() if shelf else fresh(dtype, shape, shelf)

    def trim(self, budget_bytes: int) -> None:
        """Let go of free buffers beyond a budget, the oldest kinds first."""
        held = sum(len(shelf) * shelf[0].nbytes for shelf in self._free.values() if shelf)
        for shelf in self._free.values():
            while held > budget_bytes and shelf:
                held -= shelf.pop().nbytes


def fresh(dtype: np.dtype[Any], shape: tuple[int, ...], shelf: list[Result]) -> Result:
    """A new buffer that will go back to `shelf`."""
    owner = np.empty(shape, dtype)
    return Result("array", owner, owner.nbytes, shelf)


def shifted(sent: Any, received: Any) -> Result:
    """The result of a shift: arrays, or bytes of objects."""
    nbytes = sent.nbytes if isinstance(sent, np.ndarray) else len(sent)
    result = Result("shift", sent, nbytes)
    result.value = received
    return result


# Seen if nobody else has any.
_FREE = _seen(fresh(np.dtype(np.uint8), (1,), []))
