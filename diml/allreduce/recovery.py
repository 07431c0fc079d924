"""How ranks carry out what the protocol decides: scripts of effects, run by an engine or simulator.

Owns the order of steps in a collective, a checkpoint, a load and the exit; what happens after a
repair is `refresh`'s. Pure: a script yields effects and is sent their outcomes; it knows no MPI,
time or files. If an effect fails because a rank died, the driver drops the script, repairs the
world and runs a new one: so a script changes the rank's state only where that holds for every rank
alike, or for itself alone.

Invariants: a version is committed only behind the gate, with all replicas stored
before; while `recovering`, no collective starts that a living rank has already finished.
"""

from __future__ import annotations

from typing import Any

from diml.allreduce.beside import check_clock, compare_clocks, finish_again, stamp
from diml.allreduce.divergence import check_replay, explain
from diml.allreduce.effects import (
    Execute,
    Gate,
    Pass,
    Point,
    Reduce,
    Script,
    hand_over,
)
from diml.allreduce.log import BATCH_BYTES, Record, Result, shifted
from diml.allreduce.operation import Kind, Request
from diml.allreduce.protocol import (
    Action,
    Decision,
    Place,
    Stage,
    Standing,
    decide,
    found,
    offer,
    unpack,
)
from diml.allreduce.refresh import refresh, replicate
from diml.allreduce.state import ALL_LOST, State
from diml.errors import GaveUp


class Core(State):
    """One rank in the protocol, with its scripts."""

    # Collectives -----------------------------------------------------------------------------

    def collective(self, request: Request) -> Script[Result]:
        """Finish one collective: from the log of another rank, or by carrying it out."""
        if self.recovering:
            record = yield from self._settle(request)
            if record is not None:
                finish_again(self, request, record)
                return record.result
        elif (self.sequence + 1) % self.compare_every == 0 or not self.has_met(request):
            yield from self.compare(request)
        result: Result = yield Execute(request)
        self.meet_kind(request)
        self.finish(request, result)
        return result

    def meet(self, request: Request, result: Result) -> Script[None]:
        """A barrier behind the gate: whoever dies, all pass it or none."""
        if self.recovering:
            record = yield from self._settle(request)
            if record is not None:
                finish_again(self, request, record)
                return
        else:
            yield from self.compare(request)
        yield Gate()
        self.finish(request, result)

    def compare(self, request: Request) -> Script[None]:
        """Compare the histories of all ranks, this request included. Raises Mismatch."""
        trace = self.trace(request)
        high, negative_low, *self.rode = yield Reduce((trace, -trace, *self.riding))
        if high != -negative_low:
            yield from explain(self, request)

    # Checkpoints -----------------------------------------------------------------------------

    def load(self, request: Request) -> Script[None]:
        """Close the boot stage with the committed version in the store (0: nothing yet).

        A newcomer has it since the repair (nothing is committed without it), but for a lazy model.
        """
        yield Point("load")
        if self.recovering and self._lacks_model():
            yield from self._settle(request)
        if self._lacks_model():
            raise GaveUp(f"the checkpoint of version {self.version} is gone: {ALL_LOST}")
        self.loaded = True
        stamp(self)

    def _lacks_model(self) -> bool:
        return self.version > 0 and self.store.committed.model is None

    def checkpoint(self, request: Request, model: Any, local: Any | None) -> Script[None]:
        """Store the replicas, pass the gate, move to the next version."""
        pending = self.store.prepare(model, self.origin, local)
        if self.recovering:
            before = self.version
            yield from self._settle(request)
            if self.version > before:
                return
        else:
            yield from self.compare(request)
        if local is not None:
            yield from replicate(self, local, pending.locals)
        yield Point("checkpoint")
        yield Gate()
        self._commit()

    def leave(self, request: Request) -> Script[None]:
        """The last operation: until all have come to it, this rank still serves the others."""
        self.finishing = True
        if self.recovering:
            yield from self._settle(request)
        else:
            yield from self.compare(request)
        yield Gate()

    def _commit(self) -> None:
        self.store.commit()
        self.steps.clear()
        self.prefetched.clear()
        self.orphans = self.inherits = ()
        self.beside.commit()
        stamp(self)

    # Recovery --------------------------------------------------------------------------------

    def _settle(self, request: Request) -> Script[Record | None]:
        """Rounds until this request is answered (its record) or to be carried out (None).

        Raises Mismatch if others have done something else at this place.
        """
        bare = request.kind is Kind.CHECKPOINT
        place = self.place(request.kind)
        if place in self.prefetched:
            ahead = self.prefetched.pop(place)
            check_replay(self, request, ahead)
            if self.beside.served:
                check_clock(self, request, ahead, self.prefetched.values())
            return ahead
        standing = Standing(place, self.trace(request), bare)
        while True:
            merged = yield Reduce(standing.summary())
            decision = decide(merged)
            if decision.action is Action.GO:
                if self.beside.served and request.kind is not Kind.EXIT:
                    yield from compare_clocks(self, request)
                self.recovering = False
                return None
            if decision.action is Action.LOST:
                return None
            if decision.action is Action.MISMATCH:
                yield from explain(self, request)
            if decision.action is Action.SERVE:
                record = yield from self._serve(decision, place, request)
                if record is not None:
                    check_replay(self, request, record)
                    return record
            elif decision.action is Action.LOAD:
                if (yield from self._hand_out_checkpoint(decision, place)):
                    return None
            elif decision.action is Action.COMMIT:
                yield Gate()
                if place.stage is Stage.STEP:
                    self._commit()
                    return None
                self.store.pass_over()

    def _serve(self, decision: Decision, place: Place, request: Request) -> Script[Record | None]:
        """Give the recorded result of the lowest place to those who stand there.

        They get what follows as well, so that they need not ask for each result.
        """
        low = unpack(decision.low)
        log = self.boot if low.stage is Stage.BOOT else self.steps
        needs = place == low
        held = None if needs else log.record(low.sequence)
        by = request.by if needs else log.shifts.get(low.sequence)
        shift = 0 if by is None else by % self.size + 1
        here = (-shift, shift, int(not needs and held is None))
        holds = held is not None
        said = yield Reduce((*here, *offer(self.rank, holds, needs)))
        low_shift, high_shift, lacks, *offers = said
        if high_shift != -low_shift:
            yield from explain(self, request)
        lost = f"the result of {low} is gone: every rank that kept it has died or dropped it"
        if high_shift:
            if lacks:
                raise GaveUp(lost)
            return (yield from self._pass_on(request if needs else None, held, high_shift - 1))
        given: list[Record] | None
        given = yield from hand_over(
            self.rank,
            needs,
            found(tuple(offers), lost),
            lambda: log.following(low.sequence, BATCH_BYTES),
        )
        if given is None:
            return None
        for ahead, record in enumerate(given[1:], 1):
            self.prefetched[low._replace(sequence=low.sequence + ahead)] = record
        return given[0]

    def _pass_on(
        self, request: Request | None, held: Record | None, by: int
    ) -> Script[Record | None]:
        """A shift once more, for those who ask for it (`request`): the others give what they
        gave then, and these what they would give, the same since programs are deterministic."""
        sent = request.sent if request is not None else held.result.owner if held else None
        to, source = (self.rank + by) % self.size, (self.rank - by) % self.size
        received = yield Pass(sent, to, source)
        if request is None:
            return None
        return Record(request.signature, str(request.site), shifted(sent, received))

    def _hand_out_checkpoint(self, decision: Decision, place: Place) -> Script[bool]:
        """Give a lazy model to those who load. Returns whether this rank was one."""
        needs = place.stage is Stage.LOAD
        holds = not needs and place.pack() == decision.anchor
        lost = f"the checkpoint of version {decision.version} is gone"
        transfer = found((yield Reduce(offer(self.rank, holds, needs))), lost)
        model = yield from hand_over(self.rank, needs, transfer, self.store.model)
        if needs:
            assert self.version == decision.version
            self.store.adopt(decision.version, model, uses_local=False)
        return needs

    def refresh(self) -> Script[None]:
        """After each repair: newcomers get their state, and fewer ranks begin anew."""
        return refresh(self)
