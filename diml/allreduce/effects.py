"""What a script of the protocol can ask of its driver: the steps that touch other ranks.

Owns the vocabulary between `recovery` (which decides) and whoever carries it out: the engine over
MPI, or the simulator; and the one sequence of effects that several scripts share. Every effect may
end in PeerFailed; those marked "collective" are met by all workers with the same kind of effect, in
the same order.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

from diml.allreduce.operation import Request
from diml.allreduce.protocol import Transfer, Vector


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


def hand_over(
    rank: int, needs: bool, transfer: Transfer, payload: Callable[[], Any]
) -> Script[Any]:
    """From the holder to all who need it: directly if that is one rank, else to everybody.

    Returns the payload to those who need it, None to others.
    """
    assert transfer.holder is not None
    gives = transfer.holder == rank
    if transfer.first != transfer.last:
        given = yield Spread(payload() if gives else None, transfer.holder)
        return given if needs else None
    if gives:
        yield Give(payload(), transfer.first)
    return (yield Take(transfer.holder)) if needs else None
