"""When a durable checkpoint is made and from which one a run goes on: the same on all workers.

Owns the policy of one process: what it says at each checkpoint (a few small numbers that ride on
the comparison which is made there anyway), what follows from what all have said, and the choice
at the start. Must not know MPI: it is lent the collectives that it needs, and these are recorded
and replayed like the program's own, so a replacement comes to the same choice.

There are two places. The disk (`--checkpoint-dir`) gets a version now and then: rank 0 writes the
model, each rank its local state. The memory of the nodes, under `diml run`, gets each version that
finds the one before written: one rank a node writes the model, each rank its own local state and
the replicas that it holds for other nodes. So after a lost job the memory of the nodes that are
left has it all; `diml run` removes it at the end.

Invariants: a decision is taken from what all workers have said, so all take it; one that was
interrupted by a repair is dropped by all, and asked for again at the next checkpoint.
"""

from __future__ import annotations

import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Literal, NamedTuple

from diml.checkpoint.codec import Bytes
from diml.checkpoint.durable import (
    Shelf,
    Vault,
    any_in,
    choose,
    look,
    next_attempt,
)
from diml.checkpoint.fetch import Collectives, Fetch, Restored
from diml.checkpoint.manifest import Identity, Manifest, local_name
from diml.config import Settings
from diml.errors import Misuse
from diml.world import marker

# USR2 is how SGE warns a job.
STOP_SIGNALS = (signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM)


class Wishes(NamedTuple):
    """What a worker says of one place; merged by the maximum over all of them."""

    due: int
    busy: int
    written: int
    negative_written: int


@dataclass(frozen=True)
class Plan:
    """What all have decided at a checkpoint.

    Attributes:
        write: for each place, whether this version goes there.
        stop: after that the job stops, to be resumed.
    """

    write: tuple[bool, ...]
    stop: bool


@dataclass(frozen=True)
class Place:
    """Where checkpoints go. `in_memory`: of the node, so nothing waits for a disk."""

    directory: Path
    every_s: float
    in_memory: bool = False


@dataclass(frozen=True)
class State:
    """A committed version as one rank holds it, encoded.

    Attributes:
        version: which one.
        model: gives the model; called only where it is written.
        locals: by owner, the local states that this rank holds, its own among them.
        uses_local: whether this version has local states, the same on all ranks.
    """

    version: int
    model: Callable[[], Bytes]
    locals: Mapping[int, Bytes]
    uses_local: bool


class StopRequest:
    """Remembers the signals by which a batch system asks for an orderly end."""

    def __init__(self) -> None:
        """Take over STOP_SIGNALS (only the main thread can; elsewhere nothing is taken over)."""
        self.name = ""
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._received)

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name


class Keeper:
    """Durable checkpoints as one worker takes part in them."""

    def __init__(
        self,
        places: Sequence[Place],
        *,
        resume: Literal["auto", "never", "must"],
        seed: int,
        keep: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is read or written before `meet`.

        Signals are taken over only if there is a disk to stop to.
        """
        self._places = tuple(places)
        self._to_disk = [not place.in_memory for place in places]
        self.stop = StopRequest() if any(self._to_disk) else None
        self._resume = resume
        self._seed = seed
        self._keep = keep
        self._facts: dict[str, str] = {}
        self._clock = clock
        self._last_s = [clock()] * len(self._places)
        self._vaults: list[Vault] = []
        self._attempt = 0
        self._run = ""
        self._shelves: list[Shelf] = []

    @classmethod
    def of(cls, settings: Settings, env: Mapping[str, str]) -> Keeper | None:
        """The keeper that a run was told to have, if any."""
        places, resume = places_of(settings, env)
        if not places:
            return None
        return cls(places, resume=resume, seed=settings.seed, keep=settings.keep)

    @property
    def identity(self) -> Identity:
        """What a checkpoint must have been written by for this run to go on from it."""
        return Identity(program_name(), self._seed, self._facts)

    def identify(self, facts: Mapping[str, object]) -> None:
        """Add facts, the same on all workers, that tell this job from others (see `Identity`)."""
        self._facts.update({name: str(value) for name, value in facts.items()})

    def resumable(self) -> bool:
        """Whether this process sees a durable checkpoint (on its node's disk, parts of one)."""
        return any(any_in(place.directory, place.in_memory) for place in self._places)

    # At the start ----------------------------------------------------------------------------

    def meet(self, collectives: Collectives, rank: int) -> None:
        """Find out together what is there. Before each `load_checkpoint`; replayed to replacements.

        Raises Misuse on all workers alike if one cannot use its directory.
        """
        # With fewer workers than before this comes again: as a run of its own, behind the other's.
        self.close()
        self._vaults = []
        run, problem, views = uuid.uuid4().hex[:12], "", []
        try:
            vaults = [Vault(p.directory, run, in_memory=p.in_memory) for p in self._places]
            views = [vault.view() for vault in vaults]
        except Misuse as error:
            problem = str(error)
        said = collectives.allgather((run, problem, views))
        if problems := [problem for _, problem, _ in said if problem]:
            raise Misuse(problems[0])
        self._run = said[0][0]
        for place in self._places:
            vault = Vault(place.directory, self._run, keep=self._keep, in_memory=place.in_memory)
            self._vaults.append(vault)
        self._shelves = look(
            collectives.allgather, rank, self._vaults, [views for _, _, views in said]
        )
        self._attempt = next_attempt(self._shelves)
        if self.stop is not None:
            marker.say("ready")

    def restore(
        self, collectives: Collectives, rank: int, size: int, any_workers: bool = False
    ) -> Restored | None:
        """The newest checkpoint that is whole and sound, or None for a fresh start.

        With `any_workers` one of another number of workers will do: `local` is then, on every
        worker, the list of all their states. Each one that is skipped is named by a line on
        stderr. Raises Misuse on all workers alike: the directory holds another job's, or there
        must be one and there is none.
        """
        if self._resume == "never":
            return None
        try:
            candidates, problems = choose(
                self._shelves, self.identity, None if any_workers else size
            )
        except Misuse as error:
            advice = "use another directory, or --resume never"
            raise Misuse(f"{self._where}: {error} ({advice})") from None
        self._say(rank, problems)
        for candidate in candidates:
            fetched = Fetch(collectives, self._vaults, rank, size).fetch(candidate)
            bad = [text for text in collectives.allgather(fetched.problem) if text]
            if not bad:
                for vault in self._vaults:
                    vault.confirm(*candidate.order)
                assert fetched.model is not None
                return Restored(candidate.version, fetched.model, fetched.local)
            problems.append(f"checkpoint of version {candidate.version} skipped: {bad[0]}")
            self._say(rank, problems[-1:])
        if self._resume == "must":
            why = problems[0] if problems else "there is none"
            raise Misuse(f"--resume must: no checkpoint in {self._where} to go on from: {why}")
        return None

    @property
    def _where(self) -> str:
        return str(self._places[0].directory)

    @staticmethod
    def _say(rank: int, lines: Sequence[str]) -> None:
        for line in lines if rank == 0 else ():
            print(f"diml: {line}", file=sys.stderr, flush=True)

    # At each checkpoint ----------------------------------------------------------------------

    def wishes(self, rank: int) -> tuple[int, ...]:
        """What this worker says at a checkpoint that is about to be committed."""
        said = [int(self.stop is not None and bool(self.stop.name))]
        for place, vault, last_s in zip(self._places, self._vaults, self._last_s, strict=True):
            due = rank == 0 and self._clock() - last_s >= place.every_s
            said += Wishes(int(due), int(vault.busy), vault.written, -vault.written)
        return tuple(said)

    def decide(self, merged: Sequence[int]) -> Plan:
        """What follows from what all have said, the same on all."""
        stop, write = bool(merged[0]), []
        for number, vault in enumerate(self._vaults):
            said = Wishes(*merged[1 + 4 * number : 5 + 4 * number])
            if said.written and said.written == -said.negative_written:
                vault.confirm(self._attempt, said.written)
                marker.say("version", said.written)
            wanted = said.due and not said.busy
            write.append(bool(wanted or (stop and self._to_disk[number])))
        return Plan(tuple(write), stop)

    def take(self, nbytes: int) -> Bytes | None:
        """Memory of the node to make this worker's next local state in, if there is any."""
        in_memory = (v for v, disk in zip(self._vaults, self._to_disk, strict=True) if not disk)
        vault = next(in_memory, None)
        return vault.take(nbytes) if vault is not None else None

    def write(self, plan: Plan, state: State, rank: int, hosts: Sequence[str]) -> None:
        """Begin to write a committed version to the places that it was decided for.

        Args:
            state: must not change until it is written.
            hosts: of each worker, by rank.
        """
        for number, vault in enumerate(self._vaults):
            if not plan.write[number]:
                continue
            vault.drain()
            in_memory = self._places[number].in_memory
            writes_model = rank == (hosts.index(hosts[rank]) if in_memory else 0)
            states = {"model": state.model()} if writes_model else {}
            for owner, local in state.locals.items():
                # A neighbour on this host writes its own, and would be lost with the same host.
                elsewhere = in_memory and hosts[owner] != hosts[rank]
                if owner == rank or elsewhere:
                    # What is lent may be written over before a disk has it.
                    lent = not in_memory and any(other.lends(local) for other in self._vaults)
                    states[local_name(owner)] = local.copy() if lent else local
            about = (self.identity, self._attempt, self._run, state.version)
            vault.offer(Manifest(*about, rank, len(hosts), state.uses_local), states)
            self._last_s[number] = self._clock()

    def finished(self, version: int) -> bool:
        """Wait until this worker's part of a version is on the disk; whether it is."""
        disks = [v for v, to_disk in zip(self._vaults, self._to_disk, strict=True) if to_disk]
        return all(vault.drain() and vault.written == version for vault in disks)

    def kept(self, version: int) -> None:
        """All workers have said `finished`: the version is there to be resumed from."""
        marker.say("version", version)

    def close(self) -> None:
        """Let what is being written come to its end."""
        for vault in self._vaults:
            vault.close()


def places_of(
    settings: Settings, env: Mapping[str, str]
) -> tuple[list[Place], Literal["auto", "never", "must"]]:
    """Where a run was told to keep checkpoints, and whether to go on from one."""
    places, resume = [], settings.resume
    if settings.checkpoint_dir is not None:
        places.append(Place(settings.checkpoint_dir, settings.checkpoint_every_s))
    if env.get(marker.MEMORY):
        places.append(Place(Path(env[marker.MEMORY]), 0.0, in_memory=True))
    if resume == "never" and env.get(marker.ATTEMPT, "1") != "1":
        resume = "auto"  # the supervisor started it again: that is no fresh start
    return places, resume


def program_name() -> str:
    """The running program: its module, else the name of its script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return str(spec.name) if spec is not None else Path(sys.argv[0]).name
