"""Buffers of any length between two processes of a link, while nothing else is going on there.

Owns the cutting into pieces that MPI can count. Must not know what is in a buffer.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diml.ps.message import Bytes

if TYPE_CHECKING:
    from diml.world.link import Link

_TAG = 2
_PIECE_BYTES = 1 << 30


def send_bytes(link: Link, buffer: Bytes, dest: int) -> None:
    """Start to send a buffer: its size, then its pieces. Raises PeerFailed."""
    link.isend(np.array([len(buffer)], np.int64).view(np.uint8), dest, _TAG)
    for start in range(0, len(buffer), _PIECE_BYTES):
        link.isend(buffer[start : start + _PIECE_BYTES], dest, _TAG)


def receive_bytes(link: Link, source: int) -> Bytes:
    """The buffer that `send_bytes` sends. Raises PeerFailed."""
    (size,) = _expect(link, source).view(np.int64)
    buffer = np.empty(int(size), np.uint8)
    for start in range(0, int(size), _PIECE_BYTES):
        piece = _expect(link, source)
        buffer[start : start + len(piece)] = piece
    return buffer


def _expect(link: Link, source: int) -> Bytes:
    """The next message; the repair's own deadline ends a wait for ever."""
    while True:
        message = link.receive(source, _TAG, timeout_s=1.0)
        if message is not None:
            return message.data
