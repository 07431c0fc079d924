"""What workers and servers say to each other, and how it looks on the wire.

Owns the kinds of messages and their one framing: a header of 64 bytes, then int64 ids, then the
rows, in one uint8 buffer in native byte order. Must not know who sends what when: that is the
cores' business. Invariants: encode and decode both validate; nothing on the wire is ever run.

kind       from -> to         ids, values                  other fields
OPEN       worker -> server   -, JSON                      request
OPENED     server -> worker   -, local state or nothing    request, clock (where to go on),
                                                           n (clock of the local state or -1)
DEFINE     worker -> server   -, JSON                      request
DEFINED    server -> worker                                request
REFUSED    server -> worker   -, text                      request
UPDATE     worker -> server   ids, rows to apply           clock, n, mark, flags (LAST)
LOCAL      worker -> server   -, the worker's own state    clock, n, mark
GET        worker -> server   ids                          clock, request, flags (EXACT)
VALUES     server -> worker   -, rows                      request, clock (of the slowest),
                                                           mark, n: as clock, n of ACK
PUSHED     server -> worker   ids, rows that changed       table, clock (of the slowest),
                                                           mark, n: as clock, n of ACK;
                                                           flags (LAST: all up to the clock)
ACK        server -> worker                                clock, n: all before is safe
TABLE      server -> replica  -, JSON                      shard
ROWS       server -> replica  ids, new values              shard, table, clock (the rule's steps)
RULE       server -> replica  ids, new state of the rule   shard, table
KEEP       server -> replica  -, a worker's own state      shard, worker, clock
COMMIT     server -> replica  ledger (clock, n by worker)  shard, mark (version), flags (HELD)
COMMITTED  replica -> server                               shard, mark (version)
PASSED     server -> replica  ids, rows to apply           shard, table
WHO        worker -> server                                request
LATE       server -> worker   -, text: who is late         request
CHECK      worker -> server   -                            clock, request, flags (STOP)
CHECKED    server -> worker   newest clock on each place   request, n (see `diml.ps.saving`)
SAVE       worker -> server   clocks that all have, state  clock, request, n: as CHECKED
SAVED      server -> worker   newest clock on each place   request
RECALL     worker -> server                                request, n: a worker of the run before
RECALLED   server -> worker   -, its state or nothing      request
MIRROR     server -> replica  clocks that all have, pieces shard, clock, n: as SAVE

`mark` of UPDATE and LOCAL: as many of the worker's clocks every server has acknowledged.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from enum import IntEnum
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diml.errors import CorruptState

Bytes: TypeAlias = NDArray[np.uint8]
Ids: TypeAlias = NDArray[np.int64]
Rows: TypeAlias = NDArray[Any]
Fill: TypeAlias = Callable[[int, int], None]

HEADER_BYTES = 64
# magic, kind, dtype, flags, format, worker, clock, mark, ids, rows, n, width, table, shard, two
# bytes for `diml.ps.filters`, request
_HEADER = struct.Struct("<4sBBBBiqqqqIIIHHI")
MAGIC = b"DMPS"
# More than any n.
CLOCK_END = 2**32
FORMAT = 1
DTYPES = tuple(np.dtype(name) for name in ("uint8", "float32", "float64", "int32", "int64"))
_INT64 = np.dtype(np.int64)
_unpack: Callable[..., tuple[Any, ...]] = _HEADER.unpack_from
_pack: Callable[..., None] = _HEADER.pack_into
# Rows of a read that goes the short way; where there are more, what it spares is nothing.
QUICK_BYTES = 1 << 16
CODES = {dtype: code for code, dtype in enumerate(DTYPES)}
assert _HEADER.size <= HEADER_BYTES


class Kind(IntEnum):
    """What a message says."""

    OPEN = 1
    OPENED = 2
    DEFINE = 3
    DEFINED = 4
    REFUSED = 5
    UPDATE = 6
    LOCAL = 7
    GET = 8
    VALUES = 9
    ACK = 10
    TABLE = 11
    ROWS = 12
    RULE = 13
    KEEP = 14
    COMMIT = 15
    COMMITTED = 16
    WHO = 17
    LATE = 18
    PUSHED = 19
    CHECK = 20
    CHECKED = 21
    SAVE = 22
    SAVED = 23
    RECALL = 24
    RECALLED = 25
    MIRROR = 26
    PASSED = 27


# What tells a replica of a commit; COMMIT is the last of them.
OF_COMMIT = frozenset({Kind.TABLE, Kind.ROWS, Kind.RULE, Kind.KEEP, Kind.PASSED, Kind.COMMIT})
# Access by name costs as much as what is done with a message's kind.
_GET = int(Kind.GET)
_KINDS = {int(kind): kind for kind in Kind}


class Flag:
    """LAST: nothing more comes for this clock. EXACT: a GET that allows no staleness. ACK: an
    UPDATE whose sender waits for its acknowledgement. STOP: the job was told to stop. HELD: a
    COMMIT that its receiver holds already, so that nobody waits for a COMMITTED. (Plain numbers: an
    IntFlag costs a microsecond an operation.)"""

    NONE = 0
    LAST = 1
    EXACT = 2
    ACK = 4
    STOP = 8
    HELD = 16


NO_IDS: Ids = np.empty(0, np.int64)
NO_ROWS: Rows = np.empty((0, 0), np.uint8)


class Address(NamedTuple):
    """A process by role ("worker", "server" or "spare") and its number among them."""

    role: str
    number: int


class Message(NamedTuple):
    """One message as a value. `ids` is (m,) int64; `values` is (rows, width) of one of DTYPES.

    `frame`, if there is one, is the wire buffer of which ids and values are views. `fill`, if there
    is one, writes a range of the values, which nobody has written yet.
    """

    kind: Kind
    worker: int = 0
    clock: int = 0
    n: int = 0
    table: int = 0
    ids: Ids = NO_IDS
    values: Rows = NO_ROWS
    flags: int = Flag.NONE
    mark: int = 0
    shard: int = 0
    request: int = 0
    frame: Bytes | None = None
    fill: Fill | None = None

    def __str__(self) -> str:
        """The one rendering of a message, for logs and traces."""
        rows = f" {self.values.shape[0]}x{self.values.shape[1]} {self.values.dtype}"
        return (
            f"{self.kind.name} worker {self.worker} clock {self.clock} n {self.n} "
            f"table {self.table:08x} ids {len(self.ids)}{rows if self.values.size else ''} "
            f"flags {self.flags} mark {self.mark} shard {self.shard} request {self.request}"
        )


class Send(NamedTuple):
    """What a core wants done: a message on its way."""

    to: Address
    message: Message


def flagged(message: Message, flags: int) -> Message:
    """The same message with other flags; a third of the time that `_replace` takes."""
    return Message._make((*message[:7], flags, *message[8:]))


def text_rows(text: str) -> Rows:
    """A text as the values of a message."""
    return blob_rows(np.frombuffer(text.encode(), np.uint8))


def blob_rows(blob: Bytes) -> Rows:
    """Bytes as the values of a message: one row."""
    return blob.reshape(1, -1)


def text_of(message: Message) -> str:
    """The text that a message carries."""
    return message.values.tobytes().decode()


def update_key(message: Message) -> tuple[int, int]:
    """Until when an update is needed, to be compared with a ledger's (clock, n).

    The end of a clock counts whatever its n: a replacement may need fewer updates for a clock
    than the ledger has of it.
    """
    return message.clock, CLOCK_END if message.flags & Flag.LAST else message.n


def frame(ids: int, rows: int, width: int, dtype: np.dtype[Any]) -> tuple[Bytes, Ids, Rows]:
    """An empty wire buffer, and the views into it that ids (ids,) and values (rows, width) are."""
    start = HEADER_BYTES + 8 * ids
    buffer = np.empty(start + rows * width * dtype.itemsize, np.uint8)
    # One call a view: a slice, its dtype and its shape each cost as much.
    its_ids: Ids = np.ndarray(ids, _INT64, buffer, HEADER_BYTES)
    return buffer, its_ids, np.ndarray((rows, width), dtype, buffer, start)


def write_get(buffer: Bytes, worker: int, clock: int, ids: int, table: int, request: int) -> None:
    """The header of a GET into its frame, whose ids are there already."""
    _pack(
        buffer, 0, MAGIC, _GET, 0, 0, FORMAT, worker, clock, 0, ids, 0, 0, 0, table, 0, 0, request
    )


def whole(message: Message) -> Message:
    """The message with all of its values written."""
    if message.fill is None:
        return message
    message.fill(0, len(message.values))
    return message._replace(fill=None)


def encode(message: Message) -> Bytes:
    """The message as one buffer: its own frame where it has one, else a new one (one copy)."""
    (kind, worker, clock, n, table, ids, values, flags, mark, shard, request, buffer,
     fill) = message  # fmt: skip
    assert ids.dtype == _INT64 and ids.ndim == 1 and values.ndim == 2, str(message)
    count, (rows, width), dtype = len(ids), values.shape, values.dtype
    if fill is not None:
        fill(0, rows)
    if buffer is None:
        start = HEADER_BYTES + 8 * count
        buffer = np.empty(start + values.nbytes, np.uint8)
        if count:
            np.ndarray(count, _INT64, buffer, HEADER_BYTES)[:] = ids
        if rows:
            np.ndarray((rows, width), dtype, buffer, start)[:] = values
    assert len(buffer) == HEADER_BYTES + 8 * count + values.nbytes, str(message)
    _pack(
        buffer, 0, MAGIC, kind, CODES[dtype], flags, FORMAT, worker, clock, mark, count, rows,
        n, width, table, shard, 0, request,
    )  # fmt: skip
    return buffer


def decode(buffer: Bytes) -> Message:
    """The message in a received buffer; ids and values are views of it.

    Raises CorruptState if the buffer is not a whole message.
    """
    if len(buffer) < HEADER_BYTES:
        raise CorruptState(f"a message of {len(buffer)} bytes has no room for its header")
    (magic, kind, code, flags, version, worker, clock, mark, ids, rows, n, width, table, shard, _,
     request) = _unpack(buffer)  # fmt: skip
    if magic != MAGIC or version != FORMAT:
        raise CorruptState(f"a message begins with {magic!r} {version}, not {MAGIC!r} {FORMAT}")
    if code >= len(DTYPES) or ids < 0 or rows < 0:
        raise CorruptState(f"a message has dtype code {code}, {ids} ids and {rows} rows")
    dtype, start = DTYPES[code], HEADER_BYTES + 8 * ids
    if len(buffer) != start + rows * width * dtype.itemsize:
        raise CorruptState(
            f"a message of {len(buffer)} bytes announces {ids} ids, {rows} rows of {width} {dtype}"
        )
    if kind not in _KINDS:
        raise CorruptState(f"a message has the unknown kind {kind}")
    its_ids = np.ndarray(ids, _INT64, buffer, HEADER_BYTES) if ids else NO_IDS
    values = np.ndarray((rows, width), dtype, buffer, start) if rows or width else NO_ROWS
    return Message(
        _KINDS[kind], worker, clock, n, table, its_ids, values,
        flags, mark, shard, request, buffer,
    )  # fmt: skip
