"""Who is who: logical ranks, their incarnations, and the spares that take a dead rank's seat.

Owns the only rule by which a process gets a role. Pure: it knows neither MPI nor time. Every
process computes the same membership from the same survivors, so nothing has to be sent.

Invariants: a logical rank keeps its index for the whole run; a uid names one process for ever;
an incarnation is how often the holder of that seat has died.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, replace
from enum import Enum


class Role(str, Enum):
    """What a process does in the job."""

    WORKER = "worker"
    SERVER = "server"
    SPARE = "spare"


@dataclass(frozen=True, slots=True)
class Seat:
    """A logical rank's present holder.

    Attributes:
        uid: the process, numbered from 0 in the order in which processes joined the run.
        incarnation: how many holders of this seat have died before (Rabit's ntrial).
        origin: the logical rank of this seat when the job began; another one now if the job goes
            on without some that stood before it.
    """

    uid: int
    incarnation: int = 0
    origin: int = 0


class NoSpareLeft(Exception):
    """A seat is vacant and no spare is there. `vacant` names the seats as (role, index) pairs."""

    def __init__(self, vacant: tuple[tuple[Role, int], ...]) -> None:
        self.vacant = vacant
        super().__init__(", ".join(f"{role.value} {index}" for role, index in vacant))


@dataclass(frozen=True, slots=True)
class Membership:
    """Who holds which seat.

    Attributes:
        epoch: how often the world has been repaired.
        workers: seats by worker rank.
        servers: seats by server rank.
        spares: uids of processes without a seat, in the order in which servers take them. The
            first is the standby (the replica) of a single server, so dead servers take from the
            front and dead workers from the back.
        lost: origins of the worker seats that were given up.
    """

    epoch: int
    workers: tuple[Seat, ...]
    servers: tuple[Seat, ...]
    spares: tuple[int, ...]
    lost: tuple[int, ...] = ()

    @classmethod
    def start(cls, processes: int, servers: int, spares: int) -> Membership:
        """The first membership: uids 0..W-1 work, the next ones serve, the last ones wait.

        Raises:
            ValueError: no worker would be left.
        """
        workers = processes - servers - spares
        if workers < 1:
            raise ValueError(
                f"{processes} processes are too few for {servers} servers and {spares} spares: "
                f"at least one worker is needed, so start {servers + spares + 1} or more"
            )
        return cls(
            epoch=0,
            workers=tuple(Seat(uid, 0, uid) for uid in range(workers)),
            servers=tuple(Seat(workers + i, 0, i) for i in range(servers)),
            spares=tuple(range(workers + servers, processes)),
        )

    def place_of(self, uid: int) -> tuple[Role, int]:
        """Role and index of a process. Raises KeyError for one that is not a member."""
        for role, seats in ((Role.WORKER, self.workers), (Role.SERVER, self.servers)):
            for index, seat in enumerate(seats):
                if seat.uid == uid:
                    return role, index
        if uid in self.spares:
            return Role.SPARE, self.spares.index(uid)
        raise KeyError(uid)

    def uid_at(self, role: Role, index: int) -> int:
        """The process that holds a place."""
        if role is Role.SPARE:
            return self.spares[index]
        return (self.workers if role is Role.WORKER else self.servers)[index].uid

    def drill_number(self, uid: int) -> int:
        """The number by which a drill names a process: workers, then servers, then spares, as
        they were numbered when the job began."""
        role, index = self.place_of(uid)
        if role is Role.WORKER:
            return self.workers[index].origin
        if role is Role.SPARE:
            return uid  # not its place among the spares, which another one takes when it is gone
        return len(self.workers) + len(self.lost) + index

    def incarnation_of(self, uid: int) -> int:
        """Incarnation of the seat that a process holds; 0 for a spare."""
        role, index = self.place_of(uid)
        if role is Role.SPARE:
            return 0
        return (self.workers if role is Role.WORKER else self.servers)[index].incarnation

    def vacant(self, alive: Collection[int]) -> tuple[tuple[Role, int], ...]:
        """The seats whose holders are gone, as (role, index) pairs."""
        seats = ((Role.SERVER, self.servers), (Role.WORKER, self.workers))
        return tuple(
            (role, index)
            for role, held in seats
            for index, seat in enumerate(held)
            if seat.uid not in alive
        )

    def refilled(
        self, alive: Collection[int], joined: Collection[int] = (), shrink: bool = False
    ) -> Membership:
        """The next epoch: spares in the dead ones' seats, newcomers behind the other spares.

        Servers are seated first: a lost shard stops every worker, a lost worker only itself. With
        `shrink`, workers' seats for which there is no spare are given up, if any worker is left;
        the later ones move up.

        Raises:
            NoSpareLeft: with all the seats that would stay empty.
        """
        spares = [uid for uid in (*self.spares, *joined) if uid in alive or uid in joined]
        seats = {Role.SERVER: list(self.servers), Role.WORKER: list(self.workers)}
        empty: list[tuple[Role, int]] = []
        for role, index in self.vacant(alive):
            if not spares:
                empty.append((role, index))
                continue
            seat, take = seats[role][index], 0 if role is Role.SERVER else -1
            seats[role][index] = replace(
                seat, uid=spares.pop(take), incarnation=seat.incarnation + 1
            )
        given_up = {index for role, index in empty if role is Role.WORKER} if shrink else set()
        if len(given_up) < len(empty) or len(given_up) == len(self.workers):
            raise NoSpareLeft(tuple(empty))
        workers = seats[Role.WORKER]
        return Membership(
            epoch=self.epoch + 1,
            workers=tuple(seat for i, seat in enumerate(workers) if i not in given_up),
            servers=tuple(seats[Role.SERVER]),
            spares=tuple(spares),
            lost=(*self.lost, *(workers[i].origin for i in sorted(given_up))),
        )
