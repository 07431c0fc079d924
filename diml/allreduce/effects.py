"""What a script of the protocol can ask of its driver: the steps that touch other ranks.

Owns the vocabulary between `recovery` (which decides) and whoever carries it out: the engine over
MPI, or the simulator. Values only. Every effect may end in PeerFailed; those marked "collective"
are met by all workers with the same kind of effect, in the same order.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from diml.allreduce.operation import Request
from diml.allreduce.protocol import Vector


@dataclass(frozen=True, slots=True)
class Reduce:
    """Collective: the elementwise maximum of everyone's vector."""

    vector: Vector


@dataclass(frozen=True, slots=True)
class Spread:
    """Collective: `root` gives `payload` to all."""

    payload: Any
    root: int


@dataclass(frozen=True, slots=True)
class Give:
    """Send `payload` to one rank, which asks for it by `Take`."""

    payload: Any
    to: int


@dataclass(frozen=True, slots=True)
class Take:
    """Receive what one rank gives."""

    source: int


@dataclass(frozen=True, slots=True)
class Swap:
    """Collective on the ring: send `payload` to one rank, receive from another."""

    payload: Any
    to: int
    source: int


@dataclass(frozen=True, slots=True)
class Pass:
    """Collective: what was sent in a shift goes to one rank once more, and comes from another."""

    payload: Any
    to: int
    source: int


@dataclass(frozen=True, slots=True)
class Execute:
    """Carry out the collective itself; its outcome is a Result."""

    request: Request


@dataclass(frozen=True, slots=True)
class Point:
    """A moment at which a drill may strike."""

    name: str


@dataclass(frozen=True, slots=True)
class Gate:
    """Pass the gate with everyone, or fail with everyone."""


Effect: TypeAlias = Reduce | Spread | Give | Take | Swap | Pass | Execute | Point | Gate
T = TypeVar("T")
Script: TypeAlias = Generator[Effect, Any, T]
