"""Collectives in a job with parameter servers: who is behind gets what it lacks in the repair.

Owns what the two ways must know of one another: the servers' clock at each collective, and whether
workers have state that no server has. Pure, like `recovery`. A worker that waits for a server
cannot answer another one's questions, so after a repair nobody has any: all results that some
rank has are held by every rank, to be taken when its program comes to them.

Invariants: a replacement that goes on at its own clock leaves out what it called before, so a
collective is answered from the past, or carried out with it, only at the clock at which the others
call it; where that cannot be known it is refused. What no server has is known to exist before it
does, so that the death of all workers is survived where nothing is lost, and only there.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from diml.allreduce.effects import Reduce, Script
from diml.allreduce.log import Log, Record
from diml.allreduce.operation import Request
from diml.allreduce.protocol import Place, Stage, found, offer
from diml.errors import GaveUp, Mismatch

if TYPE_CHECKING:
    from diml.allreduce.recovery import Core

ALL_LOST = "no rank is left that was there when it was made"
_BATCH_BYTES = 1 << 26
_RULE = (
    "a replaced worker goes on at its own clock and does not call again what it called in earlier "
    "ones: let job.checkpoint record the clock, or call it before job.parameter_server"
)


class Beside:
    """What one worker's collectives know of the parameter server.

    Attributes:
        served: the job has servers.
        clock: that of this worker's program; None before it has opened the parameter server.
        began: the clock at which this life of it, or the version, began.
        continues: it has come in a dead one's place and goes on at that one's clock.
        kept: workers may have state that no server has, a committed version or what collectives
            gave in the course of the clocks; servers and spares know of it as well.
    """

    def __init__(self) -> None:
        self.served = self.continues = self.kept = False
        self.clock: int | None = None
        self.began: int | None = None

    def start(self, clock: int, continues: bool) -> None:
        """The program goes on at this clock: a dead one's (`continues`), or a recorded one."""
        self.clock = self.began = clock
        self.continues = continues

    def commit(self) -> None:
        """A version is made at this clock: replacements begin there."""
        self.began, self.continues = self.clock, False

    def learn(self, said: Sequence[tuple[bool, bool]]) -> None:
        """After a repair, before anything else: of every process, whether it has heard of state
        that no server has (`kept`), and whether it is a worker that may have some. Raises GaveUp,
        on all alike, if there is such state and nobody has it."""
        self.kept = any(kept for kept, _ in said)
        if self.kept and not any(has for _, has in said):
            raise GaveUp(f"all state is gone: {ALL_LOST}")

    @property
    def stamp(self) -> tuple[int | None, bool]:
        """What is noted of a collective that is called now: see `Record.clock` and `early`."""
        return self.clock, self.clock == self.began and not self.continues


def check_clock(core: Core, request: Request, record: Record, later: Iterable[Record]) -> None:
    """Raise Mismatch unless a recorded collective was called at this worker's clock, or in the
    setting up, which a replacement does once more; `later` are those that followed it."""
    clock = core.beside.clock
    if record.clock == clock:
        return
    again = record.early and clock == core.beside.began
    if again and not any(_left_out(other, clock) for other in later):
        return
    raise Mismatch(
        f"rank {core.rank} calls {request.kind.name.lower()} at {request.site} at clock {clock} of "
        f"the parameter server, the others did at clock {record.clock}, at {record.site}: {_RULE}"
    )


def _left_out(record: Record, clock: int | None) -> bool:
    """Whether who goes on at that clock has passed the place of a collective."""
    before = -1 if record.clock is None else record.clock
    return not record.early and clock is not None and before < clock


def stamp(core: Core) -> None:
    """From here on results are noted with the present clock: it has moved, or a log begins."""
    if core.beside.served:
        core.log.mark(*core.beside.stamp)


def finish_again(core: Core, request: Request, record: Record) -> None:
    """Record what another rank has recorded, as of the clock that it was called at."""
    if core.beside.served:
        core.log.mark(record.clock, record.early)
    core.finish(request, record.result)
    stamp(core)


def compare_clocks(core: Core, request: Request) -> Script[None]:
    """Raise Mismatch, on all ranks alike, if a collective is about to be carried out at different
    clocks of workers of whom one goes on at a dead one's clock."""
    clock = -1 if core.beside.clock is None else core.beside.clock
    high, negative_low, continues = yield Reduce((clock, -clock, int(core.beside.continues)))
    if continues and high != -negative_low:
        raise Mismatch(
            f"{request.kind.name.lower()} at {request.site} is called at clock {-negative_low} of "
            f"the parameter server by one worker and at clock {high} by another: {_RULE}"
        )


def share_results(core: Core) -> Script[None]:
    """Bring every rank all results of the present stage that some rank has. Raises GaveUp, on all
    alike, if one that somebody lacks is gone."""
    yield from _share(core, core.boot, Place(Stage.BOOT, 0, 0))
    yield from _share(core, core.steps, Place(Stage.STEP, core.version, 0))


def _share(core: Core, log: Log, first: Place) -> Script[None]:
    while True:
        known = len(log.results)
        while first._replace(sequence=known) in core.prefetched:
            known += 1
        high, negative_low = yield Reduce((known, -known))
        low = first._replace(sequence=-negative_low)
        if high == low.sequence:
            return
        needs = known == low.sequence
        records = [] if needs else _following(core, log, low)
        lost = f"the result of {low} is gone: every rank that kept it has died or dropped it"
        transfer = found((yield Reduce(offer(core.rank, bool(records), needs))), lost)
        given = yield from core.transfer(needs, transfer, lambda records=records: records)  # type: ignore[misc]
        for ahead, record in enumerate(given or ()):
            core.prefetched[low._replace(sequence=low.sequence + ahead)] = record


def _following(core: Core, log: Log, low: Place) -> list[Record]:
    """What this rank has of a place's result and those after it, up to a total size."""
    records = log.following(low.sequence, _BATCH_BYTES)
    while not records or low.sequence + len(records) >= len(log.results):
        record = core.prefetched.get(low._replace(sequence=low.sequence + len(records)))
        if record is None or sum(r.result.nbytes for r in records) > _BATCH_BYTES:
            break
        records.append(record)
    return records
