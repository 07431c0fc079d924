"""A large message in pieces: its receiver takes the first while its sender still gathers the next.

Owns where a message is cut, and the mark of one that comes in pieces. Pure. Must not know how
pieces travel. Both ends compute the same cuts from the header, which goes ahead by itself.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

from diml.ps.message import DTYPES, HEADER_BYTES, Bytes, Message

# Below so many bytes of rows, more messages cost more than there is to gain.
LEAST_BYTES = 384 << 10
# A piece is received in about the time in which the next one is gathered.
_PIECE_BYTES = 256 << 10
# Where the header has the filters that were applied, of which this is none.
_APPLIED, _IN_PIECES = 58, 128
_DTYPE = 5
_ROWS, _WIDTH = struct.Struct("<q"), struct.Struct("<I")
_ROWS_AT, _WIDTH_AT = 36, 48


def announcement(message: Message, buffer: Bytes) -> Bytes:
    """The header of an encoded message without ids, as it goes ahead of the pieces."""
    assert not len(message.ids), str(message)
    header = buffer[:HEADER_BYTES].copy()
    header[_APPLIED] = _IN_PIECES
    return header


def is_announcement(data: Bytes) -> bool:
    """Whether the rest of a message comes in pieces."""
    return len(data) == HEADER_BYTES and bool(data[_APPLIED] == _IN_PIECES)


def announced(header: Bytes) -> tuple[int, int]:
    """Rows of the message that is announced, and bytes of a row."""
    (rows,), (width,) = (
        _ROWS.unpack_from(header.data, _ROWS_AT),
        _WIDTH.unpack_from(header.data, _WIDTH_AT),
    )
    return rows, width * DTYPES[header[_DTYPE]].itemsize


def begun(header: Bytes, buffer: Bytes) -> None:
    """Write the plain header of an announced message into its buffer."""
    buffer[:HEADER_BYTES] = header
    buffer[_APPLIED] = 0


def cuts(rows: int, row_bytes: int) -> Iterator[tuple[int, int]]:
    """The pieces as ranges of rows."""
    step = max(1, _PIECE_BYTES // row_bytes)
    for low in range(0, rows, step):
        yield low, min(low + step, rows)


def span(low: int, high: int, row_bytes: int) -> slice:
    """Where a range of rows lies in the buffer."""
    return slice(HEADER_BYTES + low * row_bytes, HEADER_BYTES + high * row_bytes)
