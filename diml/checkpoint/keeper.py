"""When a durable checkpoint is made and from which one a run goes on: the same on all workers.

Owns the policy of one process: what it says at each checkpoint (five small numbers that ride on
the comparison which is made there anyway), what follows from what all have said, and the choice
at the start. Must not know MPI: it is lent the collectives that it needs, and these are recorded
and replayed like the program's own, so a replacement comes to the same choice.

Invariants: a decision is taken from what all workers have said, so all take it; one that was
interrupted by a repair is dropped by all, and asked for again at the next checkpoint.
"""

from __future__ import annotations

import contextlib
import signal
import sys
import threading
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, NamedTuple, Protocol

from diml.checkpoint.durable import Candidate, Found, Vault, choose, next_attempt
from diml.checkpoint.shard import Bytes, Identity, Manifest, folder_order, local_name
from diml.errors import CorruptState, Misuse

STOP_SIGNALS = (signal.SIGUSR1, signal.SIGTERM)


class Collectives(Protocol):
    """The collectives of the workers, recorded and replayed after a failure."""

    def allgather(self, value: Any) -> Any: ...

    def broadcast(self, value: Any = None, root: int = 0) -> Any: ...


class Wishes(NamedTuple):
    """What a worker says at a checkpoint; merged by the maximum over all of them."""

    due: int
    busy: int
    stop: int
    written: int
    negative_written: int


@dataclass(frozen=True)
class Plan:
    """What all have decided at a checkpoint.

    Attributes:
        write: this version goes to the disk.
        stop: and then the job stops, to be resumed.
    """

    write: bool
    stop: bool


@dataclass(frozen=True)
class Restored:
    """The state to go on from: encoded, this rank's own local state or None."""

    version: int
    model: Bytes
    local: Bytes | None


class StopRequest:
    """Remembers the signals by which a batch system asks for an orderly end."""

    def __init__(self) -> None:
        """Take over USR1 and TERM (only the main thread can; elsewhere nothing is taken over)."""
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
        directory: Path,
        *,
        every_s: float,
        resume: Literal["auto", "never", "must"],
        seed: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is read or written before `meet`."""
        self.stop = StopRequest()
        self._directory = directory
        self._every_s = every_s
        self._resume = resume
        self._seed = seed
        self._facts: dict[str, str] = {}
        self._clock = clock
        self._last_s = clock()
        self._vault: Vault | None = None
        self._attempt = 0
        self._run = ""
        self._inventories: list[list[Found]] = []

    @property
    def identity(self) -> Identity:
        """What a checkpoint must have been written by for this run to go on from it."""
        return Identity(program_name(), self._seed, self._facts)

    @property
    def vault(self) -> Vault:
        """The directory, once `meet` is behind."""
        assert self._vault is not None, "the keepers have not met"
        return self._vault

    def identify(self, facts: Mapping[str, object]) -> None:
        """Add facts, the same on all workers, that tell this job from others (see `Identity`)."""
        self._facts.update({name: str(value) for name, value in facts.items()})

    def resumable(self) -> bool:
        """Whether this process sees a durable checkpoint (on its node's disk, parts of one)."""
        with contextlib.suppress(OSError):
            names = [path.parent.name for path in self._directory.glob("*/rank-*.json")]
            return any(folder_order(name) for name in names)
        return False

    # At the start ----------------------------------------------------------------------------

    def meet(self, collectives: Collectives) -> None:
        """Find out together what is there. Before `load_checkpoint`; replayed to replacements.

        Raises Misuse on all workers alike if one cannot use its directory.
        """
        run, found, problem = uuid.uuid4().hex[:12], [], ""
        try:
            found = Vault(self._directory, run).found()
        except Misuse as error:
            problem = str(error)
        said = collectives.allgather((run, found, problem))
        if problems := [problem for _, _, problem in said if problem]:
            raise Misuse(problems[0])
        self._run = said[0][0]
        self._inventories = [found for _, found, _ in said]
        self._attempt = next_attempt(self._inventories)
        self._vault = Vault(self._directory, self._run)

    def restore(self, collectives: Collectives, rank: int, size: int) -> Restored | None:
        """The newest checkpoint that is whole and sound, or None for a fresh start.

        Each one that is skipped is named by a line on stderr. Raises Misuse on all workers alike:
        the directory holds another job's, or there must be one and there is none.
        """
        if self._resume == "never":
            return None
        try:
            candidates, problems = choose(self._inventories, self.identity, size)
        except Misuse as error:
            advice = "use another directory, or --resume never"
            raise Misuse(f"{self._directory}: {error} ({advice})") from None
        self._say(rank, problems)
        for candidate in candidates:
            fetched = self._fetch(collectives, candidate, rank)
            bad = [text for text in collectives.allgather(fetched.problem) if text]
            if not bad:
                self.vault.confirm(*candidate.order)
                assert fetched.model is not None
                return Restored(candidate.version, fetched.model, fetched.local)
            problems.append(f"checkpoint of version {candidate.version} skipped: {bad[0]}")
            self._say(rank, problems[-1:])
        if self._resume == "must":
            why = problems[0] if problems else "there is none"
            raise Misuse(f"--resume must: no checkpoint in {self._directory} to go on from: {why}")
        return None

    def _fetch(self, collectives: Collectives, candidate: Candidate, rank: int) -> _Fetched:
        """Read what this rank needs and hand out what others do."""
        fetched = _Fetched()
        fetched.model = self._piece(collectives, candidate, "model", rank, fetched)
        for owner in range(candidate.size if candidate.uses_local else 0):
            name = local_name(owner)
            if candidate.holders[name][0] == owner:
                # Whoever needs it reads it itself.
                if owner == rank:
                    fetched.local = self._read(candidate, name, fetched)
                continue
            data = self._piece(collectives, candidate, name, rank, fetched)
            if owner == rank:
                fetched.local = data
        return fetched

    def _piece(
        self, collectives: Collectives, candidate: Candidate, name: str, rank: int, to: _Fetched
    ) -> Bytes | None:
        holder = candidate.holders[name][0]
        data = self._read(candidate, name, to) if holder == rank else None
        given: Bytes | None = collectives.broadcast(data, holder)
        return given

    def _read(self, candidate: Candidate, name: str, to: _Fetched) -> Bytes | None:
        try:
            return self.vault.read(candidate.order, name)
        except CorruptState as error:
            to.problem = str(error)
            return None

    @staticmethod
    def _say(rank: int, lines: Sequence[str]) -> None:
        for line in lines if rank == 0 else ():
            print(f"diml: {line}", file=sys.stderr, flush=True)

    # At each checkpoint ----------------------------------------------------------------------

    def wishes(self, rank: int) -> Wishes:
        """What this worker says at a checkpoint that is about to be committed."""
        due = rank == 0 and self._clock() - self._last_s >= self._every_s
        written = self.vault.written
        return Wishes(due, self.vault.busy, bool(self.stop.name), written, -written)

    def decide(self, merged: Sequence[int]) -> Plan:
        """What follows from what all have said, the same on all."""
        said = Wishes(*merged)
        if said.written and said.written == -said.negative_written:
            self.vault.confirm(self._attempt, said.written)
        return Plan(bool(said.stop or (said.due and not said.busy)), bool(said.stop))

    def write(
        self, version: int, rank: int, size: int, model: Callable[[], Bytes], local: Bytes | None
    ) -> None:
        """Begin to write a committed version: rank 0 the model, each rank its local state."""
        self.vault.drain()
        states: dict[str, Bytes] = {}
        if rank == 0:
            states["model"] = model()
        if local is not None:
            states[local_name(rank)] = local
        manifest = Manifest(
            self.identity, self._attempt, self._run, version, rank, size, local is not None
        )
        self.vault.offer(manifest, states)
        self._last_s = self._clock()

    def finished(self, version: int) -> bool:
        """Wait until this worker's part of a version is on the disk; whether it is."""
        return self.vault.drain() and self.vault.written == version


class _Fetched:
    """What a rank has got of a candidate, and what was wrong with what it read."""

    def __init__(self) -> None:
        self.model: Bytes | None = None
        self.local: Bytes | None = None
        self.problem = ""


def program_name() -> str:
    """The running program: its module, else the name of its script."""
    spec = getattr(sys.modules["__main__"], "__spec__", None)
    return str(spec.name) if spec is not None else Path(sys.argv[0]).name
