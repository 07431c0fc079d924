"""Where this process stands among its peers: its role, its links, the others' addresses.

Owns the reading of the present footing. Must not know how it changes: that is the world's.
"""

from __future__ import annotations

from diml.world.host import Host
from diml.world.link import Link
from diml.world.membership import Membership, Role
from diml.world.repair import Footing


class Position:
    """One process's place in the job.

    Attributes:
        footing: links and membership; replaced as a whole by a repair.
        uid: this process's number for the whole run.
        host: the run as seen from this process's machine.
    """

    def __init__(self, footing: Footing, host: Host) -> None:
        self.footing = footing
        self.uid = footing.uids[footing.full.rank]
        self.host = host

    @property
    def full(self) -> Link:
        """Everyone living. Changes at a repair."""
        return self.footing.full

    @property
    def workers(self) -> Link | None:
        """The workers by logical rank; None on servers and spares. Changes at a repair."""
        return self.footing.workers

    @property
    def membership(self) -> Membership:
        """Who holds which seat."""
        return self.footing.membership

    @property
    def role(self) -> Role:
        """What this process does now."""
        return self.membership.place_of(self.uid)[0]

    @property
    def rank(self) -> int:
        """This process's logical index within its role."""
        return self.membership.place_of(self.uid)[1]

    @property
    def incarnation(self) -> int:
        """How many earlier holders of this seat have died."""
        return self.membership.incarnation_of(self.uid)

    @property
    def epoch(self) -> int:
        """How often the world has been repaired."""
        return self.membership.epoch

    @property
    def hosts(self) -> tuple[str, ...]:
        """Host name of each worker, by rank; "" of those who join in the very repair in which
        this process does, until its hooks run."""
        known, seats = self.host.processes, self.membership.workers
        return tuple(known[s.uid].host_name if s.uid in known else "" for s in seats)

    def address(self, role: Role, index: int) -> int:
        """Rank in `full` of a logical worker, server or spare."""
        return self.footing.uids.index(self.membership.uid_at(role, index))
