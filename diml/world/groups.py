"""Groups of workers: an outer job lends each a communicator of its own, to run jobs on.

Owns how groups are made and what the members of one tell each other around a job. Must not know
what is run. A group is neighbours by rank, made anew after each repair of the outer world; its
communicators are not freed (see `diml.world.link`).

Invariant: making groups ends in the gate of the workers, so all have their groups or none has.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, cast

from mpi4py import MPI

from diml.errors import PeerFailed
from diml.world.link import Link
from diml.world.world import World


@dataclass(frozen=True)
class Group:
    """This process's group.

    Attributes:
        link: its members, by rank.
        everyone: all workers, for messages among groups.
    """

    link: Link
    everyone: Link

    def second(self) -> Link:
        """Another end of `everyone` for another thread, with tags of its own."""
        return Link(self.everyone.comm)

    def gathered(self, value: Any) -> list[Any] | None:
        """Everybody's small object by rank in the group; None on all if a member has died."""
        if not self.link.agree(True):
            return None
        try:
            said = self.link.allgather_objects(value)
        except PeerFailed:
            said = None
        return said if self.link.agree(said is not None) else None


def grouped(world: World, size: int) -> Group:
    """Deal the workers out into groups of `size`. Collective over the workers.

    Raises PeerFailed, on all alike, where someone died; `world.recover` is next.
    """
    assert world.workers is not None
    comm = world.workers.comm
    try:
        everyone = Link(comm.Dup())
        link = Link(cast(MPI.Intracomm, comm.Split(world.rank // size, world.rank)))
    except MPI.Exception as error:
        # Those who wait for this rank, not for the dead one, hear of it in no other way.
        world.workers.revoke()
        raise PeerFailed(error.Get_error_string()) from None
    world.gate()
    return Group(link, everyone)
