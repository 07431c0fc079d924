"""Rebuild the communicators after a death: shrink, refill, split, agree - and again if needed.

Owns the order of the steps and what each failure in between leads to. Must not know what the
ranks were doing or what state they hold: that is restored afterwards by the world's hooks.

Invariants: everyone living enters together (the gate on the base link has said "error"), every
step ends in an agreement, and so all survivors return the same links and membership or none does.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, cast

from mpi4py import MPI

from diml.errors import GaveUp, PeerFailed
from diml.world.link import Link
from diml.world.membership import Membership, NoSpareLeft, Role
from diml.world.spawn import Spawner, bridge

ATTEMPTS_MAX = 64
SPAWN_DEADLINE_S = 60.0


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
        uid_next: the number of the next process that joins.
    """

    full: Link
    uids: tuple[int, ...]
    workers: Link | None
    membership: Membership
    uid_next: int

    @property
    def servers_and_spares(self) -> list[int]:
        """The ranks in `full` of all but the workers."""
        workers = {seat.uid for seat in self.membership.workers}
        return [rank for rank, uid in enumerate(self.uids) if uid not in workers]


@dataclass(frozen=True)
class Welcome:
    """What the leader tells a spawned process: where the repair that it joins stands.

    Attributes:
        membership: as it was before the deaths.
        uids: who has which rank in the new link, the newcomer's own last.
        joined: the newcomers of this repair, this one included.
        about: anything that the leader's World adds.
    """

    membership: Membership
    uids: tuple[int, ...]
    joined: tuple[int, ...]
    about: Any


def first_footing(comm: MPI.Intracomm, membership: Membership) -> Footing:
    """The links of a job that starts; `comm` stays the caller's.

    Raises PeerFailed if a process dies meanwhile; `comm` is revoked then, since those who wait for
    this process, not for the dead one, hear of it in no other way.
    """
    full = None
    try:
        full = Link(comm.Dup())
        uids = tuple(range(full.size))
        return Footing(full, uids, _split(full, uids, membership), membership, full.size)
    except MPI.Exception as error:
        with contextlib.suppress(NotImplementedError, MPI.Exception):
            comm.Revoke()
            if full is not None:
                full.comm.Revoke()
        raise PeerFailed(f"a process was lost during the start: {error}") from None


class Rebuild:
    """One repair of the links, as seen by one process.

    `phase` is told the name of each step as it begins, for the record of times. `on_failure` is
    how a gap is filled (see `diml.config`); `spawner` starts processes where that is allowed, and
    `about` goes into newcomers' Welcome.
    """

    def __init__(
        self,
        phase: Callable[[str], None],
        on_failure: str,
        spawner: Spawner,
        about: Callable[[], Any],
    ) -> None:
        self._phase = phase
        self._on_failure = on_failure
        self._spawner = spawner
        self._about = about

    def run(self, broken: Footing) -> Footing:
        """A footing without the dead, every seat filled.

        Collective over the living members of `broken.full`, after its gate has said "error".

        Raises:
            Unfilled: on everyone alike, if a seat cannot be filled or deaths go on without end.
        """
        self._begin(broken.membership, broken.full, broken.uids, (), broken.uid_next)
        return self._loop(shrunk=False)

    def join(self, full: Link, welcome: Welcome) -> Footing:
        """The same for a spawned process, from the moment at which it has become a member."""
        uid_next = max(welcome.uids) + 1
        self._begin(welcome.membership, full, welcome.uids, welcome.joined, uid_next)
        return self._loop(shrunk=True)

    def _begin(
        self,
        before: Membership,
        base: Link,
        uids: tuple[int, ...],
        joined: tuple[int, ...],
        uid_next: int,
    ) -> None:
        self._before = before
        self._base = base
        self._uids = uids
        self._joined = joined
        self._uid_next = uid_next

    def _loop(self, shrunk: bool) -> Footing:
        for _ in range(ATTEMPTS_MAX):
            if not shrunk and not self._shrink():
                continue
            shrunk = False
            self._phase("refill")
            membership = self._seated()
            if membership is None:
                continue
            self._phase("split")
            ok, workers = True, None
            try:
                workers = _split(self._base, self._uids, membership)
            except MPI.Exception:
                ok = False
                # Those who wait for this rank, not for the dead one, hear of it in no other way.
                self._base.revoke()
            if self._base.agree(ok):
                return Footing(self._base, self._uids, workers, membership, self._uid_next)
            if workers is not None:
                workers.close()
        message = f"the world could not be repaired in {ATTEMPTS_MAX} attempts: ranks keep dying"
        raise Unfilled(message, self._base.rank == 0)

    def _shrink(self) -> bool:
        """Stand on a link of the living; False on everyone if anyone did not get it."""
        self._phase("shrink")
        shrunk = _shrink(self._base)
        if shrunk is None:
            return False
        self._uids = _uids_in(shrunk, self._base, self._uids)
        self._base.close()
        self._base = shrunk
        return True

    def _seated(self) -> Membership | None:
        """Everyone's seat, with newcomers if spares are too few; None if a death came between."""
        while True:
            joined = [uid for uid in self._joined if uid in self._uids]
            try:
                vacant = self._before.vacant(self._uids)
                if vacant and self._on_failure == "stop":
                    reason = f"{NoSpareLeft(vacant)} died, and the job was to stop then"
                    raise Unfilled(reason, self._base.rank == 0)
                shrink = self._on_failure == "shrink"
                return self._before.refilled(self._uids, joined, shrink)
            except NoSpareLeft as empty:
                reason = f"{empty} died and no spare is left to take the place"
            if self._on_failure != "respawn":
                raise Unfilled(reason, self._base.rank == 0)
            self._phase("spawn")
            if not self._grow(self._spawner, reason):
                return None

    def _grow(self, spawner: Spawner, reason: str) -> bool:
        """Let one spawned process join; False on everyone if a death came between.

        Raises:
            Unfilled: the leader could not start a process within the deadline.
        """
        base = self._base
        child = spawner.take(SPAWN_DEADLINE_S) if base.rank == 0 else None
        found = None
        try:
            found = bool(base.broadcast_object(child is not None, 0))
        except PeerFailed:
            base.revoke()
        if not base.agree(found is not None):
            if child is not None:
                spawner.give_back(child)
            return False
        if not found:
            raise Unfilled(f"{reason}, and no process could be started", base.rank == 0)
        uids, joined = (*self._uids, self._uid_next), (*self._joined, self._uid_next)
        merged = bridge(base, child, Welcome(self._before, uids, joined, self._about()))
        self._uid_next += 1
        if merged is None:
            return False
        base.close()
        self._base, self._uids, self._joined = merged, uids, joined
        return True


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


class PhaseClock:
    """Seconds spent in each named phase of a repair."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self._name = "gate"
        self._since = time.perf_counter()

    def phase(self, name: str) -> None:
        now = time.perf_counter()
        self.seconds[self._name] = self.seconds.get(self._name, 0.0) + now - self._since
        self._name, self._since = name, now

    def total_s(self) -> float:
        return sum(self.seconds.values())
