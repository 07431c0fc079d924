"""The state of one rank in the protocol: where it stands, its logs, its checkpoints.

Owns what a rank knows, and the changes to it that are the same in every script. The scripts that
make them are `recovery`'s, `refresh`'s, `beside`'s and `divergence`'s. Pure: it knows no MPI, time
or files.

Invariant: a result is in the log of the present stage before the caller sees it.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

from diml.allreduce.log import Log, Record, Result
from diml.allreduce.operation import Kind, Request
from diml.allreduce.protocol import Place, Stage
from diml.checkpoint.memory import Store
from diml.checkpoint.ring import Ring
from diml.errors import GaveUp

ALL_LOST = "no rank is left that was there when it was made"
# Kinds of collectives whose first call on a link is compared.
_KINDS_MAX = 64


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


class State:
    """One rank in the protocol.

    Attributes:
        rank, life, ring: its place, how often that place's holder has died, and the placement of
            replicas; set by `seat`.
        origins, lost: the number that each rank had when the job began, by rank; and those of
            the ranks that the job goes on without. Local states are kept by these numbers.
        settled, placed: `origins` and `ring` as they were when this rank's state was last brought
            into order.
        orphans: lost ranks that the committed version still has local states of.
        inherits: those of them whose states this rank gives to the program.
        restart: the ranks have become fewer; the program must begin again at its load.
        finishing: the program is through.
        deaths: by rank: the place of its last death, how often in a row, and its life then.
        drilled: (rank, life) of the deaths that are meant.
        loaded: `load_checkpoint` is behind it.
        recovering: the ranks may stand at different places; they agree before each step.
        stocked: it knows the committed version and holds the local states that belong on it.
        compare_every: failure-free, the histories are compared at every checkpoint, at exit,
            before the first collective of each of the first kinds (see `has_met`), and whenever
            so many have been called.
        riding, rode: numbers that travel with it, and their maxima (none once a repair came).
        beside: what it knows of the parameter server of the job.
        prefetched: results that wait for this rank to come to their places.
        facts, told: what the program has told of the job (`identify`), the same on all ranks; and
            a hash of it.
    """

    def __init__(
        self, boot: Log, steps: Log, store: Store, replicas: int, compare_every: int
    ) -> None:
        self.boot = boot
        self.steps = steps
        self.store = store
        self.replicas = replicas
        self.compare_every = compare_every
        self.rank = 0
        self.size = 1
        self.life = 0
        self.seated = False
        self.origins: tuple[int, ...] = (0,)
        self.lost: tuple[int, ...] = ()
        self.settled: tuple[int, ...] = (0,)
        self.orphans: tuple[int, ...] = ()
        self.inherits: tuple[int, ...] = ()
        self.restart = self.finishing = False
        self.drilled: frozenset[tuple[int, int]] = frozenset()
        self.deaths: dict[int, tuple[int, int, int]] = {}
        self.ring = self.placed = Ring.of([""], 0)
        self.loaded = False
        self.recovering = False
        self.stocked = True
        self.riding: tuple[int, ...] = ()
        self.rode: list[int] = []
        self.beside = Beside()
        self.prefetched: dict[Place, Record] = {}
        self.facts: dict[str, str] = {}
        self.told = 0
        self._met: set[int] = set()

    def seat(
        self,
        rank: int,
        hosts: tuple[str, ...],
        life: int = 0,
        origins: tuple[int, ...] = (),
        lost: tuple[int, ...] = (),
    ) -> None:
        """Take a place among `len(hosts)` ranks, whose holders have died `life` times."""
        first = not self.seated
        self.rank, self.size, self.life, self.seated = rank, len(hosts), life, True
        self.origins, self.lost = origins or tuple(range(self.size)), lost
        self.ring = Ring.of(hosts, self.replicas)
        if first:
            self.settled, self.placed = self.origins, self.ring

    @property
    def origin(self) -> int:
        """The rank that this one's place had when the job began."""
        return self.origins[self.rank]

    def locals_by_rank(self) -> dict[int, Any]:
        """The local states of the present ranks that this one holds."""
        held = self.store.committed.locals
        return {rank: held[o] for rank, o in enumerate(self.origins) if o in held}

    @property
    def together(self) -> bool:
        """Whether what this rank begins now all ranks begin on the present link: none of them
        has passed this place on an earlier one."""
        return not self.recovering

    @property
    def version(self) -> int:
        """The committed version."""
        return self.store.committed.version

    @property
    def log(self) -> Log:
        """The log of the present stage."""
        return self.steps if self.loaded else self.boot

    @property
    def sequence(self) -> int:
        """Collectives finished since the stage began."""
        return len(self.log.results)

    @property
    def coordinates(self) -> tuple[int, int]:
        """Version and sequence as a drill counts them (0 before the load)."""
        return (self.version if self.loaded else 0, self.sequence)

    def place(self, kind: Kind) -> Place:
        """Where a request of that kind stands."""
        if kind is Kind.LOAD:
            return Place(Stage.LOAD, 0, 0)
        if not self.loaded:
            return Place(Stage.BOOT, 0, self.sequence)
        return Place(Stage.STEP, self.version, self.sequence)

    def identify(self, facts: Mapping[str, object]) -> None:
        """Note what the program tells of the job before its load."""
        self.facts.update({name: str(value) for name, value in facts.items()})
        words = json.dumps(self.facts, sort_keys=True).encode()
        self.told = int.from_bytes(hashlib.blake2b(words, digest_size=7).digest(), "little")

    def trace(self, request: Request) -> int:
        """Hash of the calls since the stage began, this one included; from the load on, of the
        facts too: before, a rank may have yet to tell them that others have told."""
        return self.log.trace(self.told if self.loaded else 0, request.signature)

    def finish(self, request: Request, result: Result) -> None:
        """Record a result; from now on this rank stands behind it."""
        log = self.log
        if request.by is not None:
            log.shifts[self.sequence] = request.by
        if log.append(request.signature, request.site, result, request.synchronising):
            self.tighten()

    def has_met(self, request: Request) -> bool:
        """Whether a collective need not be compared because the ranks have carried out one of its
        signature together before, on the present link.

        The first one is compared: ranks whose arrays differ in size mostly do so from the start,
        and MPI, shown them, may give wrong values, crash, or wait for ever. Who need not wait for
        the others (a broadcast's root) does not for this either; and beyond the first signatures
        nothing is compared any more, so that a program whose arrays never have the same shape
        twice does not pay for two calls each time.
        """
        met = self._met
        return not request.synchronising or request.signature in met or len(met) >= _KINDS_MAX

    def meet_kind(self, request: Request) -> None:
        """Note what all ranks have carried out together: on the present link, so that all, the
        newcomers of a repair too, note the same."""
        if len(self._met) < _KINDS_MAX:
            self._met.add(request.signature)

    def part(self) -> None:
        """A repair: newcomers have met nobody."""
        self.recovering = True
        self._met.clear()

    def tighten(self) -> None:
        """The log has outgrown its budget: share its results with the other ranks."""
        self.log.spread(self.rank, self.size, self.replicas + 1)

    def begin_anew(self) -> None:
        """Stand before the first collective again, the committed version kept."""
        self.boot.clear()
        self.steps.clear()
        self.prefetched.clear()
        self.deaths.clear()
        self.loaded = self.recovering = False
