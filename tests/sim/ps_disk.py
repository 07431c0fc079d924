"""Durable storage in the parameter server's simulation.

Owns what a process has been given to keep. Must not know processes, nor deaths.
"""

from __future__ import annotations

import random

from diml.checkpoint.codec import decode as decode_tree
from diml.checkpoint.codec import encode as encode_tree
from diml.ps.message import Bytes, Message
from diml.ps.saving import Nowhere
from diml.ps.snapshot import Snapshot, Tree


class Disk(Nowhere):
    """Durable storage of one process: remembers what it was given."""

    def __init__(self, rng: random.Random, kept: list[tuple[int, Tree]]) -> None:
        self._rng, self._kept = rng, kept

    def due(self, stop: bool) -> int:
        return 2 if self._rng.random() < 0.5 else 0

    def store(self, decision: int, snapshot: Snapshot, mirrored: bool) -> Bytes | None:
        tree = encode_tree(snapshot.to_tree())
        self._kept.append((snapshot.clock, decode_tree(tree)))
        return tree if mirrored else None

    def mirror(self, message: Message, shards: int) -> None:
        self._kept.append((message.clock, decode_tree(message.values.reshape(-1))))
