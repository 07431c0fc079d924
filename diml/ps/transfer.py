"""Shards, and buffers of any length, between processes of a link that does nothing else meanwhile.

Owns the cutting into pieces that MPI can count. Must not know which shard belongs where.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from diml.checkpoint.codec import decode, encode
from diml.ps.message import Bytes
from diml.ps.shard import Shard

if TYPE_CHECKING:
    from diml.ps.node_core import NodeCore
    from diml.ps.recovery import Plan
    from diml.world.link import Link

_TAG = 2
_PIECE_BYTES = 1 << 30


def carry_out(link: Link, plan: Plan, core: NodeCore) -> dict[int, Shard]:
    """Send and receive the copies that the plan wants moved; returns those that came here."""
    for transfer in plan.transfers:
        if transfer.source == link.rank:
            send_bytes(link, encode(core.tree_of(transfer.shard)), transfer.dest)
    return {
        transfer.shard: Shard.from_tree(decode(receive_bytes(link, transfer.source)))
        for transfer in plan.transfers
        if transfer.dest == link.rank
    }


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
