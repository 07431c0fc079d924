"""What all ranks do next, from one merged summary of where each of them stands.

Owns positions, the summary that each rank contributes, its merge and the decision table. Pure:
numbers in, a decision out. Must not know MPI, logs or checkpoints, nor how a decision is carried
out (see `recovery`).

The run of a rank is a line of places: operations before `load_checkpoint`, the load itself, then
(version, sequence) for every collective, a checkpoint standing at the sequence after the last
one. After a failure the ranks stand at different places. Each round merges one summary per rank
by elementwise maximum, which is associative and commutative and fits one small MPI allreduce, so
that a round costs O(log P) messages and bytes a rank. Every rank then reads the same decision
from the same merged summary.

Invariants: a rank that is behind is served before anything new is computed; nothing is computed
again that any living rank has finished; nothing is committed on differing histories.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import NamedTuple, TypeAlias

from diml.errors import GaveUp

Vector: TypeAlias = tuple[int, ...]

# Larger than any place, hash or rank, and its negative is a 64-bit number too.
FAR = 2**63 - 1
_SEQUENCE_BITS = 31
_VERSION_BITS = 30
HASH_MASK = 2**62 - 1


class Stage(IntEnum):
    """The three parts of a rank's line, in their order."""

    BOOT = 0
    LOAD = 1
    STEP = 2


class Place(NamedTuple):
    """Where a rank stands: at the request that it has not yet finished. Ordered as lived."""

    stage: Stage
    version: int
    sequence: int

    def pack(self) -> int:
        """The place as one number with the same order."""
        assert self.version < 1 << _VERSION_BITS and self.sequence < 1 << _SEQUENCE_BITS
        return ((self.stage << _VERSION_BITS | self.version) << _SEQUENCE_BITS) | self.sequence

    def __str__(self) -> str:
        if self.stage is Stage.BOOT:
            return f"collective {self.sequence} before load_checkpoint"
        if self.stage is Stage.LOAD:
            return "load_checkpoint"
        return f"version {self.version}, collective {self.sequence}"


def unpack(number: int) -> Place:
    """The place that `Place.pack` made into `number`."""
    rest, sequence = divmod(number, 1 << _SEQUENCE_BITS)
    stage, version = divmod(rest, 1 << _VERSION_BITS)
    return Place(Stage(stage), version, sequence)


@dataclass(frozen=True, slots=True)
class Standing:
    """One rank's answer to: where do you stand, and what do you ask for?

    Attributes:
        place: the place of the request.
        trace: hash of the signatures since the version began, the request's own included.
        bare: the request is a checkpoint without local states.
    """

    place: Place
    trace: int
    bare: bool = False

    def summary(self) -> Vector:
        """The vector to be merged.

        Fields: the highest place; the lowest (negated); the highest and the lowest trace of those
        who do not load; the lowest place among the loaded (negated); whether a loaded rank asks
        for anything but a bare checkpoint.
        """
        place = self.place.pack()
        loads = self.place.stage is Stage.LOAD
        loaded = self.place.stage is Stage.STEP
        high, low = (-FAR, -FAR) if loads else (self.trace, -self.trace)
        anchor = -place if loaded else -FAR
        return (place, -place, high, low, anchor, int(loaded and not self.bare))


def merge(left: Vector, right: Vector) -> Vector:
    """The summary of two groups of ranks. Associative, commutative, idempotent."""
    return tuple(map(max, left, right))


class Action(Enum):
    """What all ranks do together after a round."""

    GO = "all stand at one place: they carry out the request as if nothing had happened"
    SERVE = "the lowest are given the recorded result of their request by one who is ahead"
    LOST = "all ask for a lazy model and nobody has it"
    LOAD = "the loading ranks are given the model by a rank that has it"
    COMMIT = "the loaded ranks finish a bare checkpoint; the loading ones need not replay to it"
    MISMATCH = "ranks at one place asked for different things, or came there differently"


# (stage of the lowest, all at one place, all the loaded at one bare checkpoint) -> action.
# What is missing cannot be: if all are loaded and at one checkpoint, then all are at one place;
# if all are at one place below STEP, then nobody is loaded.
TABLE: dict[tuple[Stage, bool, bool], Action] = {
    (Stage.BOOT, True, False): Action.GO,
    (Stage.BOOT, False, False): Action.SERVE,
    (Stage.BOOT, False, True): Action.SERVE,
    (Stage.LOAD, True, False): Action.LOST,
    (Stage.LOAD, False, False): Action.LOAD,
    (Stage.LOAD, False, True): Action.COMMIT,
    (Stage.STEP, True, False): Action.GO,
    (Stage.STEP, True, True): Action.GO,
    (Stage.STEP, False, False): Action.SERVE,
}


@dataclass(frozen=True, slots=True)
class Decision:
    """The outcome of a round, the same on every rank.

    Attributes:
        action: what to do.
        low: the place of those who are furthest behind; SERVE and LOAD are for them.
        anchor: the lowest place of a loaded rank (FAR if none). For LOAD, who stands there has
            the checkpoint unchanged: a lazy model may be altered after a version's last
            collective, which nobody at the lowest place has finished (all others being at the
            next checkpoint is COMMIT).
    """

    action: Action
    low: int
    anchor: int

    @property
    def version(self) -> int:
        """The version that LOAD hands out."""
        return unpack(self.anchor).version


def decide(merged: Vector) -> Decision:
    """Read the decision from the merged summaries of all ranks."""
    high, negative_low, trace_high, negative_trace_low, negative_anchor, others = merged
    low, anchor = -negative_low, -negative_anchor
    stage = unpack(low).stage
    someone_loaded = anchor != FAR
    bare = someone_loaded and anchor == high and not others
    action = TABLE[stage, low == high, bare]
    if action in (Action.GO, Action.COMMIT) and trace_high != -negative_trace_low:
        action = Action.MISMATCH
    if action is Action.LOAD:
        # The gate moves all loaded ranks from one version to the next, or none.
        assert unpack(anchor).version == unpack(high).version, (unpack(anchor), unpack(high))
    return Decision(action, low, anchor)


@dataclass(frozen=True, slots=True)
class Transfer:
    """Who gives something to whom: read from merged `offer` vectors.

    Attributes:
        holder: the lowest rank that has it, or None.
        first, last: the lowest and highest rank that needs it.
    """

    holder: int | None
    first: int
    last: int


def offer(rank: int, holds: bool, needs: bool) -> Vector:
    """One rank's part in finding a holder, to be merged by `merge`."""
    return (-rank if holds else -FAR, rank if needs else -FAR, -rank if needs else -FAR)


def match(merged: Vector) -> Transfer:
    """Read the transfer from the merged offers."""
    holder = -merged[0]
    return Transfer(None if holder == FAR else holder, -merged[2], merged[1])


def found(merged: Vector, lost: str) -> Transfer:
    """The transfer of merged offers. Raises GaveUp (`lost`), on all ranks alike, if nobody has
    what is needed."""
    transfer = match(merged)
    if transfer.holder is None:
        raise GaveUp(lost)
    return transfer
