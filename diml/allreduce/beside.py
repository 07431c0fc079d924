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

from collections.abc import Iterable

from diml.allreduce.effects import Reduce, Script, hand_over
from diml.allreduce.log import BATCH_BYTES, Log, Record
from diml.allreduce.operation import Request
from diml.allreduce.protocol import Place, Stage, found, offer
from diml.allreduce.state import State
from diml.errors import Mismatch

_RULE = (
    "a replaced worker goes on at its own clock and does not call again what it called in earlier "
    "ones: let job.checkpoint record the clock, or call it before job.parameter_server"
)


def check_clock(state: State, request: Request, record: Record, later: Iterable[Record]) -> None:
    """Raise Mismatch unless a recorded collective was called at this worker's clock, or in the
    setting up, which a replacement does once more; `later` are those that followed it."""
    clock = state.beside.clock
    if record.clock == clock:
        return
    again = record.early and clock == state.beside.began
    if again and not any(_left_out(other, clock) for other in later):
        return
    raise Mismatch(
        f"rank {state.rank} calls {request.kind.name.lower()} at {request.site} at clock {clock} "
        f"of the parameter server, the others did at clock {record.clock}, at {record.site}: "
        + _RULE
    )


def _left_out(record: Record, clock: int | None) -> bool:
    """Whether who goes on at that clock has passed the place of a collective."""
    before = -1 if record.clock is None else record.clock
    return not record.early and clock is not None and before < clock


def stamp(state: State) -> None:
    """From here on results are noted with the present clock: it has moved, or a log begins."""
    if state.beside.served:
        state.log.mark(*state.beside.stamp)


def finish_again(state: State, request: Request, record: Record) -> None:
    """Record what another rank has recorded, as of the clock that it was called at."""
    if state.beside.served:
        state.log.mark(record.clock, record.early)
    state.finish(request, record.result)
    stamp(state)


def compare_clocks(state: State, request: Request) -> Script[None]:
    """Raise Mismatch, on all ranks alike, if a collective is about to be carried out at different
    clocks of workers of whom one goes on at a dead one's clock."""
    clock = -1 if state.beside.clock is None else state.beside.clock
    high, negative_low, continues = yield Reduce((clock, -clock, int(state.beside.continues)))
    if continues and high != -negative_low:
        raise Mismatch(
            f"{request.kind.name.lower()} at {request.site} is called at clock {-negative_low} of "
            f"the parameter server by one worker and at clock {high} by another: {_RULE}"
        )


def share_results(state: State) -> Script[None]:
    """Bring every rank all results of the present stage that some rank has. Raises GaveUp, on all
    alike, if one that somebody lacks is gone."""
    yield from _share(state, state.boot, Place(Stage.BOOT, 0, 0))
    yield from _share(state, state.steps, Place(Stage.STEP, state.version, 0))


def _share(state: State, log: Log, first: Place) -> Script[None]:
    while True:
        known = len(log.results)
        while first._replace(sequence=known) in state.prefetched:
            known += 1
        high, negative_low = yield Reduce((known, -known))
        low = first._replace(sequence=-negative_low)
        if high == low.sequence:
            return
        needs = known == low.sequence
        records = [] if needs else _following(state, log, low)
        lost = f"the result of {low} is gone: every rank that kept it has died or dropped it"
        transfer = found((yield Reduce(offer(state.rank, bool(records), needs))), lost)
        given = yield from hand_over(state.rank, needs, transfer, lambda records=records: records)  # type: ignore[misc]
        for ahead, record in enumerate(given or ()):
            state.prefetched[low._replace(sequence=low.sequence + ahead)] = record


def _following(state: State, log: Log, low: Place) -> list[Record]:
    """What this rank has of a place's result and those after it, up to a total size."""
    records = log.following(low.sequence, BATCH_BYTES)
    while not records or low.sequence + len(records) >= len(log.results):
        record = state.prefetched.get(low._replace(sequence=low.sequence + len(records)))
        if record is None or sum(r.result.nbytes for r in records) > BATCH_BYTES:
            break
        records.append(record)
    return records
