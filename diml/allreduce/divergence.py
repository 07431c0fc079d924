"""Naming the calls in which the histories of ranks differ, or the facts that their programs told.

Owns the words and the exchange that finds them. Pure, as `recovery` is, whose rank state it reads
and leaves as it is: every script here ends in Mismatch, on all ranks alike.
"""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter
from typing import Any

from diml.allreduce.effects import Reduce, Script, Spread
from diml.allreduce.log import Record, Site
from diml.allreduce.operation import Request
from diml.allreduce.state import State
from diml.errors import Mismatch


def check_replay(state: State, request: Request, record: Record) -> None:
    """Raise Mismatch if the recorded collective is not the one that this rank asks for."""
    if record.signature != request.signature:
        raise Mismatch(
            f"ranks called different collectives at {state.place(request.kind)}: rank "
            f"{state.rank} at {request}, others before it at {record.site}, which differs"
        )


def explain(state: State, request: Request) -> Script[None]:
    """Find the first call in which the histories differ, and raise Mismatch everywhere."""
    log = state.log
    mine = [*log.signatures, request.signature]
    sites: list[Site | Request] = [*log.sites, request]
    (length,) = yield Reduce((len(mine),))
    padded = [*mine, *[0] * (length - len(mine))]
    merged = yield Reduce((*padded, *(-number for number in padded)))
    first = next((i for i in range(length) if merged[i] != -merged[length + i]), None)
    if first is None:
        yield from _explain_facts(state)
        first = length - 1
    site = str(sites[first]) if first < len(sites) else "no further call"
    extremes = merged[first], -merged[length + first]
    said = yield from _speakers(state, padded[first], extremes, site)
    words = [f"rank {rank} at {theirs}" for rank, theirs in said]
    place = state.place(request.kind)._replace(sequence=first)
    raise Mismatch(f"ranks called different collectives at {place}: {', '.join(words)}")


def _explain_facts(state: State) -> Script[None]:
    """Raise Mismatch everywhere if the ranks have told different facts of the job."""
    mine = state.told
    high, negative_low = yield Reduce((mine, -mine))
    if high == -negative_low:
        return
    said = yield from _speakers(state, mine, (high, -negative_low), state.facts)
    (one, some), (two, others) = sorted(said, key=itemgetter(0))
    for name in sorted({*some, *others}):
        if (here := some.get(name)) != (there := others.get(name)):
            raise Mismatch(
                f"the ranks do not work on the same: {name} is {here} on rank {one}, {there} on "
                f"rank {two}; is a file not the same on all hosts?"
            )


def _speakers(
    state: State, mine: int, wanted: Sequence[int], word: Any
) -> Script[list[tuple[int, Any]]]:
    """By number that is wanted, the first rank whose own it is, and its word."""
    said = []
    for number in wanted:
        (speaker,) = yield Reduce((state.size - state.rank if mine == number else 0,))
        rank = state.size - speaker
        said.append((rank, (yield Spread(word, rank))))
    return said
