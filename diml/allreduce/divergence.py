"""Naming the calls in which the histories of ranks differ.

Owns the words and the exchange that finds them. Pure, as `recovery` is, whose rank state it reads
and leaves as it is: every script here ends in Mismatch, on all ranks alike.
"""

from __future__ import annotations

from diml.allreduce.effects import Reduce, Script, Spread
from diml.allreduce.log import Record, Site
from diml.allreduce.operation import Request
from diml.allreduce.state import State
from diml.errors import Mismatch


def check_replay(state: State, request: Request, record: Record) -> None:
    """Raise Mismatch if the recorded collective is not the one that this rank asks for."""
    if record.signature != request.signature:
        here = f"{request.kind.name.lower()} at {request.site}"
        raise Mismatch(
            f"rank {state.rank} replays {state.place(request.kind)} as {here}, "
            f"but the others did it at {record.site} with other arguments"
        )


def explain(state: State, request: Request) -> Script[None]:
    """Find the first call in which the histories differ, and raise Mismatch everywhere."""
    log = state.log
    mine = [*log.signatures, request.signature]
    sites: list[Site] = [*log.sites, request.site]
    (length,) = yield Reduce((len(mine),))
    padded = [*mine, *[0] * (length - len(mine))]
    merged = yield Reduce((*padded, *(-number for number in padded)))
    first = next((i for i in range(length) if merged[i] != -merged[length + i]), length - 1)
    words = []
    for wanted in (merged[first], -merged[length + first]):
        has = padded[first] == wanted
        (speaker,) = yield Reduce((state.size - state.rank if has else 0,))
        rank = state.size - speaker
        site = str(sites[first]) if first < len(sites) else "no further call"
        words.append(f"rank {rank} at {(yield Spread(site, rank))}")
    place = state.place(request.kind)._replace(sequence=first)
    raise Mismatch(f"ranks called different collectives at {place}: {', '.join(words)}")
