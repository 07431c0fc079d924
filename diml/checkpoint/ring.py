"""Where the replicas of a rank's local state go: pure placement on a ring of ranks.

Owns the rule. Must not know what is stored or how it travels. The ranks stand in a circle, sorted
by host; a replica goes a fixed number of places further. So each rank holds as many replicas as
it has, and an exchange is one send and one receive a rank for each replica. On a single host
these are the next k ranks (as in Rabit); with several hosts the distances are chosen so that as
many replicas as possible lie on a host that holds no other copy.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True)
class Ring:
    """The placement for one list of hosts.

    Attributes:
        order: ranks around the circle.
        seat: the place of each rank in `order`.
        shifts: how many places further each of the replicas goes.
    """

    order: tuple[int, ...]
    seat: tuple[int, ...]
    shifts: tuple[int, ...]

    @classmethod
    def of(cls, hosts: Sequence[str], replicas: int) -> Ring:
        """Place `replicas` copies (at most all other ranks) over ranks on the given hosts."""
        size = len(hosts)
        order = sorted(range(size), key=lambda rank: (hosts[rank], rank))
        seat = [0] * size
        for place, rank in enumerate(order):
            seat[rank] = place
        shifts = _shifts([hosts[rank] for rank in order], min(replicas, size - 1))
        return cls(tuple(order), tuple(seat), shifts)

    def holder(self, owner: int, replica: int) -> int:
        """The rank that holds the given replica (0..k-1) of `owner`'s state."""
        return self.order[(self.seat[owner] + self.shifts[replica]) % len(self.order)]

    def source(self, holder: int, replica: int) -> int:
        """The rank whose state `holder` holds as that replica."""
        return self.order[(self.seat[holder] - self.shifts[replica]) % len(self.order)]

    def held_by(self, rank: int) -> tuple[int, ...]:
        """The owners whose states belong on `rank`: itself first."""
        return (rank, *(self.source(rank, replica) for replica in range(len(self.shifts))))


def _shifts(hosts: Sequence[str], replicas: int) -> tuple[int, ...]:
    """Distances along the circle, chosen one after another; ties go to the shortest."""
    if len(set(hosts)) < 2:
        return tuple(range(1, replicas + 1))
    numbers = {host: number for number, host in enumerate(dict.fromkeys(hosts))}
    circle = np.array([numbers[host] for host in hosts])
    copies = [circle]
    chosen: list[int] = []
    for _ in range(replicas):
        best = (len(hosts) + 1, 0)
        for shift in range(1, len(hosts)):
            if shift in chosen:
                continue
            there = np.roll(circle, -shift)
            shared = np.zeros(len(hosts), bool)
            for other in copies:
                shared |= there == other
            best = min(best, (int(np.count_nonzero(shared)), shift))
        chosen.append(best[1])
        copies.append(np.roll(circle, -best[1]))
    return tuple(chosen)
