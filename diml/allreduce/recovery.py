"""How ranks carry out what the protocol decides: scripts of effects, run by an engine or simulator.

Owns the state of one rank (where it stands, its logs, its checkpoints) and the order of steps in
a collective, a checkpoint, a load, the exit, and the refilling of replicas. Pure: a script yields
effects and is sent their outcomes; it knows no MPI, time or files. If an effect fails because a
rank died, the driver drops the script, repairs the world and runs a new one: so a script changes
the rank's state only where that holds for every rank alike, or for itself alone.

Invariants: a result is recorded before the caller sees it; a version is committed only behind
the gate, with all replicas stored before; while `recovering`, no collective starts that a living
rank has already finished.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from diml.allreduce.beside import ALL_LOST, Beside, check_clock, compare_clocks, finish_again, stamp
from diml.allreduce.divergence import check_replay, explain
from diml.allreduce.effects import (
    Execute,
    Gate,
    Give,
    Pass,
    Point,
    Reduce,
    Script,
    Spread,
    Swap,
    Take,
)
from diml.allreduce.log import Log, Record, Result, shifted
from diml.allreduce.operation import Kind, Request
from diml.allreduce.protocol import (
    Action,
    Decision,
    Place,
    Stage,
    Standing,
    Transfer,
    decide,
    found,
    offer,
    unpack,
)
from diml.allreduce.refresh import refresh
from diml.checkpoint.memory import Store
from diml.checkpoint.ring import Ring
from diml.errors import GaveUp

# Results that are given to one who is behind, in one go.
_BATCH_BYTES = 1 << 26


class Core:
    """One rank in the protocol.

    Attributes:
        rank, life, ring: its place, how often that place's holder has died, and the placement of
            replicas; set by `seat`.
        origins, lost: the number that each rank had when the job began, by rank; and those of
            the ranks that the job goes on without. Local states are kept by these numbers.
        settled, placed: `origins` and `ring` as they were when this rank's state was last brought
            into order.
        orphans: lost ranks that the committed version still has local states of.
        inherits: those of them whose states this rank gives to the program.
        restart: the ranks have become fewer; the program must begin again at its load.
        finishing: the program is through.
        deaths: by rank: the place of its last death, how often in a row, and its life then.
        drilled: (rank, life) of the deaths that are meant.
        loaded: `load_checkpoint` is behind it.
        recovering: the ranks may stand at different places; they agree before each step.
        stocked: it knows the committed version and holds the local states that belong on it.
        compare_every: failure-free, the histories are compared at every checkpoint, at exit, and
            whenever so many collectives have been called.
        riding, rode: numbers that travel with it, and their maxima (none once a repair came).
        beside: what it knows of the parameter server of the job.
        prefetched: results that wait for this rank to come to their places.
    """

    def __init__(
        self, boot: Log, steps: Log, store: Store, replicas: int, compare_every: int
    ) -> None:
        self.boot = boot
        self.steps = steps
        self.store = store
        self.replicas = replicas
        self.compare_every = compare_every
        self.rank = 0
        self.size = 1
        self.life = 0
        self.seated = False
        self.origins: tuple[int, ...] = (0,)
        self.lost: tuple[int, ...] = ()
        self.settled: tuple[int, ...] = (0,)
        self.orphans: tuple[int, ...] = ()
        self.inherits: tuple[int, ...] = ()
        self.restart = self.finishing = False
        self.drilled: frozenset[tuple[int, int]] = frozenset()
        self.deaths: dict[int, tuple[int, int, int]] = {}
        self.ring = self.placed = Ring.of([""], 0)
        self.loaded = False
        self.recovering = False
        self.stocked = True
        self.riding: tuple[int, ...] = ()
        self.rode: list[int] = []
        self.beside = Beside()
        self.prefetched: dict[Place, Record] = {}

    def seat(
        self,
        rank: int,
        hosts: tuple[str, ...],
        life: int = 0,
        origins: tuple[int, ...] = (),
        lost: tuple[int, ...] = (),
    ) -> None:
        """Take a place among `len(hosts)` ranks, whose holders have died `life` times."""
        first = not self.seated
        self.rank, self.size, self.life, self.seated = rank, len(hosts), life, True
        self.origins, self.lost = origins or tuple(range(self.size)), lost
        self.ring = Ring.of(hosts, self.replicas)
        if first:
            self.settled, self.placed = self.origins, self.ring

    @property
    def origin(self) -> int:
        """The rank that this one's place had when the job began."""
        return self.origins[self.rank]

    def locals_by_rank(self) -> dict[int, Any]:
        """The local states of the present ranks that this one holds."""
        held = self.store.committed.locals
        return {rank: held[o] for rank, o in enumerate(self.origins) if o in held}

    @property
    def together(self) -> bool:
        """Whether what this rank begins now all ranks begin on the present link: none of them
        has passed this place on an earlier one."""
        return not self.recovering

    @property
    def version(self) -> int:
        """The committed version."""
        return self.store.committed.version

    @property
    def log(self) -> Log:
        """The log of the present stage."""
        return self.steps if self.loaded else self.boot

    @property
    def sequence(self) -> int:
        """Collectives finished since the stage began."""
        return len(self.log.results)

    @property
    def coordinates(self) -> tuple[int, int]:
        """Version and sequence as a drill counts them (0 before the load)."""
        return (self.version if self.loaded else 0, self.sequence)

    def place(self, kind: Kind) -> Place:
        """Where a request of that kind stands."""
        if kind is Kind.LOAD:
            return Place(Stage.LOAD, 0, 0)
        if not self.loaded:
            return Place(Stage.BOOT, 0, self.sequence)
        return Place(Stage.STEP, self.version, self.sequence)

    # Collectives -----------------------------------------------------------------------------

    def collective(self, request: Request) -> Script[Result]:
        """Finish one collective: from the log of another rank, or by carrying it out."""
        if self.recovering:
            record = yield from self._settle(request)
            if record is not None:
                finish_again(self, request, record)
                return record.result
        elif (self.sequence + 1) % self.compare_every == 0:
            yield from self.compare(request)
        result: Result = yield Execute(request)
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

    def finish(self, request: Request, result: Result) -> None:
        """Record a result; from now on this rank stands behind it."""
        log = self.log
        if request.by is not None:
            log.shifts[self.sequence] = request.by
        if log.append(request.signature, request.site, result, request.synchronising):
            self.tighten()

    def tighten(self) -> None:
        """The log has outgrown its budget: share its results with the other ranks."""
        self.log.spread(self.rank, self.size, self.replicas + 1)

    def compare(self, request: Request) -> Script[None]:
        """Compare the histories of all ranks, this request included. Raises Mismatch."""
        trace = self.log.trace(request.signature)
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
            yield from self.replicate(local, pending.locals)
        yield Point("checkpoint")
        yield Gate()
        self._commit()

    def replicate(self, local: Any, held: dict[int, Any]) -> Script[None]:
        """Give copies of a local state to the ring; those of others come into `held`."""
        for replica in range(len(self.ring.shifts)):
            holder = self.ring.holder(self.rank, replica)
            owner = self.ring.source(self.rank, replica)
            held[self.origins[owner]] = yield Swap(local, holder, owner)

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

    def begin_anew(self) -> None:
        """Stand before the first collective again, the committed version kept."""
        self.boot.clear()
        self.steps.clear()
        self.prefetched.clear()
        self.deaths.clear()
        self.loaded = self.recovering = False

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
        standing = Standing(place, self.log.trace(request.signature), bare)
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
        given = yield from self.transfer(
            needs, found(tuple(offers), lost), lambda: log.following(low.sequence, _BATCH_BYTES)
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
        model = yield from self.transfer(needs, transfer, self.store.model)
        if needs:
            assert self.version == decision.version
            self.store.adopt(decision.version, model, uses_local=False)
        return needs

    def transfer(self, needs: bool, transfer: Transfer, payload: Callable[[], Any]) -> Script[Any]:
        """From the holder to all who need it: directly if that is one rank, else to everybody.

        Returns the payload to those who need it, None to others.
        """
        assert transfer.holder is not None
        gives = transfer.holder == self.rank
        if transfer.first != transfer.last:
            given = yield Spread(payload() if gives else None, transfer.holder)
            return given if needs else None
        if gives:
            yield Give(payload(), transfer.first)
        return (yield Take(transfer.holder)) if needs else None

    def refresh(self) -> Script[None]:
        """After each repair: newcomers get their state, and fewer ranks begin anew."""
        return refresh(self)
