"""Simulated communicators and the processes on them: who waits for what, and what they get.

The outcome of a call is defined here as MPI defines it, but for failures (see `allreduce_world`).
"""

from __future__ import annotations

from typing import Any

from diml.allreduce.effects import Execute, Give, Pass, Reduce, Spread, Swap, Take
from diml.allreduce.log import Result, shifted
from diml.allreduce.operation import Kind
from diml.allreduce.protocol import merge
from diml.allreduce.recovery import Core
from tests.sim.allreduce_program import Begin, Call, Op, Wish, combine

_NOWHERE = -2  # the slot of a call that no other one meets


class Violation(AssertionError):
    """The protocol broke a promise."""


class Process:
    """One process with its program and its place in the protocol.

    `state` is one of running, blocked (in a call), gated, waiting (for a repair), hook (it runs
    the repair's hook), hooked, done, dead.
    """

    def __init__(self, rank: int, incarnation: int, core: Core, program: Any, comm: Comm) -> None:
        self.rank = rank
        self.incarnation = incarnation
        self.core = core
        self.program = program
        self.comm = comm
        self.wish: Wish | None = None
        self.script: Any = None
        self.effect: Any = None
        self.slot = -1
        self.used = self.begun = 0
        self.token = 0
        self.state = "running"
        self.outcome: tuple[int, int] | None = None
        self.caught_up = incarnation == 0
        self.messages = self.bytes = 0


class Comm:
    """A communicator: its members' collectives are matched by their order."""

    def __init__(self, size: int, tolerant: bool) -> None:
        """With `tolerant`, different calls that meet are an MPI error instead of a Violation."""
        self.size = size
        self.tolerant = tolerant
        self.slots: list[dict[int, Any]] = []
        self.mail: dict[tuple[int, int], list[Any]] = {}
        self.begun: dict[tuple[int, int], int] = {}
        self.revoked = False
        self.dead: set[int] = set()
        self._outcomes: dict[tuple[int, Op | None], Any] = {}

    @property
    def broken(self) -> bool:
        """Whether calls may fail."""
        return self.revoked or bool(self.dead)

    def begin(self, process: Process, begun: Begin, heard: bool = True) -> None:
        """Send what a shift gives; messages are matched in the order in which they are sent. Where
        not `heard` it has failed on the way."""
        begun.posted = (self, process.begun)
        process.begun += 1
        if heard:
            self.begun[process.rank, begun.posted[1]] = begun.value

    def post(self, process: Process) -> bool:
        """Begin the process's call. Returns whether others may now go on."""
        effect = process.effect
        if (begun := _begun(process)) is not None:
            if begun.posted is None or begun.posted[0] is not self:
                self.begin(process, begun)
            process.slot = -1
            return True
        if isinstance(effect, Give):
            self.mail.setdefault((process.rank, effect.to), []).append(effect.payload)
            self._count(process, 1)
            return True
        if isinstance(effect, Take):
            return False
        process.slot, process.used = process.used, process.used + 1
        while len(self.slots) <= process.slot:
            self.slots.append({})
        slot = self.slots[process.slot]
        place = str(process.core.place(effect.request.kind)) if isinstance(effect, Execute) else ""
        first, _, first_place = next(iter(slot.values()), (effect, None, place))
        differs = type(first) is not type(effect) or first_place != place
        if isinstance(effect, Execute) and isinstance(first, Execute):
            # A shift is made of messages, which no collective ever answers.
            differs |= (effect.request.by is None) != (first.request.by is None)
        if differs and self.tolerant:
            self.revoked = True
            process.slot = _NOWHERE
            return True
        if differs:
            # MPI would return nonsense, or hang.
            mine, other = type(effect).__name__, type(first).__name__
            raise Violation(f"{mine} {place!r} meets {other} {first_place!r}")
        slot[process.rank] = (effect, process.wish, place)
        if self._source(process) is not None or len(slot) == self.size:
            return True
        return self._root(process) == process.rank

    def hears(self, process: Process, speaker: Process) -> bool:
        """Whether the speaker's call lets `process` go on."""
        if process.effect is None:
            return False
        if _begun(process) is not None:
            return self.able(process)
        if isinstance(speaker.effect, Give):
            return isinstance(process.effect, Take) and self.able(process)
        return process.slot == speaker.slot and self.able(process)

    def able(self, process: Process) -> bool:
        """Whether the awaited outcome is there."""
        effect = process.effect
        if isinstance(effect, Give):
            return True
        if isinstance(effect, Take):
            return bool(self.mail.get((effect.source, process.rank)))
        if (begun := _begun(process)) is not None:
            return self._source_of(process, begun) in self.begun
        if process.slot == _NOWHERE:
            return False
        slot = self.slots[process.slot]
        root = self._root(process)
        return len(slot) == self.size if root is None else root in slot

    def value(self, process: Process) -> Any:
        """The outcome of a call that is `able`."""
        effect = process.effect
        if isinstance(effect, Give):
            return None
        if isinstance(effect, Take):
            return self.mail[effect.source, process.rank].pop(0)
        if (begun := _begun(process)) is not None:
            process.caught_up = True
            came = self.begun[self._source_of(process, begun)]
            return shifted(effect.request.sent, came.to_bytes(8, "little"))
        slot = self.slots[process.slot]
        if isinstance(effect, Spread):
            self._count(process, 1)
            return slot[effect.root][0].payload
        if isinstance(effect, Swap | Pass):
            return slot[effect.source][0].payload
        if isinstance(effect, Execute) and (source := self._source(process)) is not None:
            process.caught_up = True
            return shifted(effect.request.sent, slot[source][0].request.sent)
        op = process.wish.op if isinstance(process.wish, Call) else None
        key = (process.slot, op)
        if key not in self._outcomes:
            self._outcomes[key] = self._outcome(slot, effect, op)
        outcome = self._outcomes[key]
        if isinstance(effect, Execute):
            process.caught_up = True
            return Result("none", outcome, 8)
        self._count(process, 2)
        return outcome

    def _root(self, process: Process) -> int | None:
        """Whose call alone is waited for; None for everyone's."""
        effect = process.effect
        if isinstance(effect, Spread):
            return effect.root
        if isinstance(effect, Execute) and effect.request.kind is Kind.BROADCAST:
            assert isinstance(process.wish, Call)
            return process.wish.op.root
        return self._source(process)

    def _outcome(self, slot: dict[int, Any], effect: Any, op: Op | None) -> Any:
        if isinstance(effect, Reduce):
            vectors = [entry[0].vector for entry in slot.values()]
            merged = vectors[0]
            for vector in vectors[1:]:
                merged = merge(merged, vector)
            return merged
        assert op is not None
        if op.kind is Kind.BROADCAST:
            return slot[op.root][1].value
        return combine(op, [slot[rank][1].value for rank in range(len(slot))])

    def _source(self, process: Process) -> int | None:
        """Whose value a call on the ring brings; None for other calls."""
        effect = process.effect
        if isinstance(effect, Swap | Pass):
            return effect.source
        if isinstance(effect, Execute) and effect.request.by is not None:
            return (process.rank - effect.request.by) % self.size
        return None

    def _source_of(self, process: Process, begun: Begin) -> tuple[int, int]:
        """Which message a shift that was begun on this communicator brings."""
        source = self._source(process)
        assert source is not None and begun.posted is not None and begun.posted[0] is self
        return source, begun.posted[1]

    def _count(self, process: Process, passes: int) -> None:
        """Messages and bytes that a rank sends, if collectives run over a binomial tree."""
        effect = process.effect
        depth = max(1, (self.size - 1).bit_length())
        messages = 1 if isinstance(effect, Give) else depth * passes
        process.messages += messages
        process.bytes += messages * (8 * len(effect.vector) if isinstance(effect, Reduce) else 64)


def _begun(process: Process) -> Begin | None:
    """The shift that is waited for, if it was begun before."""
    wish = process.wish
    executes = isinstance(process.effect, Execute) and isinstance(wish, Call)
    return wish.begun if executes and isinstance(wish, Call) else None
