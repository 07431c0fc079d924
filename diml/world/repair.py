"""Rebuild the communicators after a death: shrink, refill, split, agree - and again if needed.

Owns the order of the steps and what each failure in between leads to. Must not know what the
ranks were doing or what state they hold: that is restored afterwards by the world's hooks.

Invariants: everyone living enters together (the gate on the base link has said "error"), every
step ends in an agreement, and so all survivors return the same links and membership or none does.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from mpi4py import MPI

from diml.errors import GaveUp
from diml.world.link import Link
from diml.world.membership import Membership, NoSpareLeft, Role

ATTEMPTS_MAX = 64


class Unfilled(GaveUp):
    """A seat stays empty. Raised on all survivors alike; one of them is the `speaker`."""

    def __init__(self, message: str, speaker: bool) -> None:
        super().__init__(message)
        self.speaker = speaker


@dataclass(frozen=True)
class Footing:
    """What a repair starts from and ends with.

    Attributes:
        full: everyone living.
        uids: who has which rank in `full`.
        workers: the workers ordered by logical rank; None on the others.
        membership: who holds which seat.
    """

    full: Link
    uids: tuple[int, ...]
    workers: Link | None
    membership: Membership


def first_footing(comm: MPI.Intracomm, membership: Membership) -> Footing:
    """The links of a job that starts; `comm` stays the caller's."""
    full = Link(comm.Dup())
    uids = tuple(range(full.size))
    return Footing(full, uids, _split(full, uids, membership), membership)


def rebuild(broken: Footing, phase: Callable[[str], None]) -> Footing:
    """A footing without the dead, every seat filled.

    Collective over the living members of `broken.full`, after its gate has said "error".
    `phase` is told the name of each step as it begins, for the record of times.

    Raises:
        Unfilled: on everyone alike, if a seat cannot be filled or deaths go on without end.
    """
    base, uids = broken.full, broken.uids
    for _ in range(ATTEMPTS_MAX):
        phase("shrink")
        shrunk = _shrink(base)
        if shrunk is None:
            continue
        uids = _uids_in(shrunk, base, uids)
        base.close()
        base = shrunk
        phase("refill")
        try:
            membership = broken.membership.refilled(uids)
        except NoSpareLeft as vacant:
            message = f"{vacant} died and no spare is left to take the place"
            raise Unfilled(message, base.rank == 0) from None
        phase("split")
        ok, workers = True, None
        try:
            workers = _split(base, uids, membership)
        except MPI.Exception:
            ok = False
        if base.agree(ok):
            if broken.workers is not None:
                broken.workers.close()
            return Footing(base, uids, workers, membership)
        if workers is not None:
            workers.close()
        base.revoke()
    message = f"the world could not be repaired in {ATTEMPTS_MAX} attempts: ranks keep dying"
    raise Unfilled(message, base.rank == 0)


def _shrink(base: Link) -> Link | None:
    """A new link of the living, or None on everyone if anyone did not get it."""
    try:
        comm = cast(MPI.Intracomm, base.comm.Shrink())
    except MPI.Exception:
        comm = None
    # What has died until now is known to the agreement; only a further death makes it fail.
    base.ack_deaths()
    if base.agree(comm is not None):
        assert comm is not None
        return Link(comm)
    if comm is not None:
        Link(comm).close()
    return None


def _uids_in(link: Link, base: Link, uids: tuple[int, ...]) -> tuple[int, ...]:
    group, base_group = link.comm.Get_group(), base.comm.Get_group()
    ranks = MPI.Group.Translate_ranks(group, list(range(link.size)), base_group)
    group.Free()
    base_group.Free()
    return tuple(uids[rank] for rank in ranks)


def _split(full: Link, uids: tuple[int, ...], membership: Membership) -> Link | None:
    role, index = membership.place_of(uids[full.rank])
    color = 0 if role is Role.WORKER else MPI.UNDEFINED
    comm = cast(MPI.Intracomm, full.comm.Split(color, index))
    if comm == MPI.COMM_NULL:
        return None
    return Link(comm)
