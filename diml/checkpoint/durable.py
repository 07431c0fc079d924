"""Checkpoints that outlive the run: written behind the job's back, found again by the next one.

Owns a directory of versions on behalf of one process: the thread that writes, what may be
deleted, and the choice among what all processes have found. `shard` owns the files. Must not know
MPI: who agrees on what, and how, is the caller's business.

A version is whole when every piece that it needs is named by a good manifest that some process
sees; there is no central file, so each node may have a directory of its own. Invariants: at most
one version of a process is being written; what is deleted is older than the newest versions that
all processes are known to have written, and belongs to this job.
"""

from __future__ import annotations

import hashlib
import os
import queue
import sys
import threading
import traceback
from bisect import bisect_left
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from diml.checkpoint.codec import Bytes
from diml.checkpoint.disk import Disk
from diml.checkpoint.manifest import Found, Identity, Manifest, Order, local_name, local_owner
from diml.checkpoint.slots import Slots
from diml.errors import Misuse
from diml.world.claim import make_private

# Where ranks keep all cores busy, the caller waits some milliseconds for a thread that it wakes to
# get a core and give the interpreter back. So much is written to memory in less.
_AT_ONCE_BYTES = 8 << 20


class Medium(Protocol):
    """Where the versions of one process lie: `Disk` or `Slots`."""

    def write(
        self, manifest: Manifest, states: Mapping[str, Bytes], stay: Sequence[Order] | None
    ) -> None:
        """Write this rank's part; what is older than all of `stay` may go. Raises OSError."""

    def listed(self) -> list[Path]:
        """What there is to look at."""

    def found(self, path: Path) -> Found | None:
        """What one of these is, checked but for the bytes of its states; None if it is empty."""

    def read(self, manifest: Manifest, name: str) -> Bytes:
        """One encoded state, all of it checked. Raises CorruptState, naming the file."""


@dataclass(frozen=True, slots=True)
class Shelf:
    """A directory with all that was found in it.

    Attributes:
        place: which of a process's directories it is, by index.
        processes: those that see it, in ascending order.
        found: its shards.
    """

    place: int
    processes: Sequence[int]
    found: Sequence[Found]


@dataclass(frozen=True, slots=True)
class Holder:
    """Who can read a piece: the process, the index of its directory, and the piece's manifest."""

    process: int
    place: int
    manifest: Manifest


@dataclass(frozen=True, slots=True)
class Candidate:
    """A version that is whole as far as manifests tell.

    Attributes:
        order: which version.
        size: how many ranks wrote it.
        uses_local: whether it has local states.
        holders: for each piece, who reads it.
    """

    order: Order
    size: int
    uses_local: bool
    holders: Mapping[str, Holder]

    @property
    def version(self) -> int:
        """Number of committed checkpoints up to this one."""
        return self.order[1]


class Vault:
    """One process's directory of durable checkpoints.

    Attributes:
        directory: where the versions are.
        written: newest version of this run whose files this process has brought to the disk.
    """

    def __init__(
        self, directory: Path, run: str, *, keep: int = 2, in_memory: bool = False
    ) -> None:
        """Make the directory if it is not there.

        Args:
            run: the run's name, the same on all its processes.
            keep: how many whole versions stay; one in memory.
            in_memory: the directory is in the memory of the node.

        Raises Misuse if the directory cannot be made or written.
        """
        self.directory = directory
        self.written = 0
        self._run = run
        self._keep = 1 if in_memory else keep
        self._in_memory = in_memory
        self._medium: Medium = (Slots if in_memory else Disk)(directory, run)
        self._thread: threading.Thread | None = None
        self._work: queue.SimpleQueue[tuple[Manifest, dict[str, Bytes]] | None]
        self._idle = threading.Event()
        self._idle.set()
        self._whole: list[Order] = []
        try:
            make_private(directory)
        except OSError as error:
            raise Misuse(f"checkpoint directory {directory}: {error.strerror}") from None
        if not os.access(directory, os.W_OK | os.X_OK):
            raise Misuse(f"checkpoint directory {directory}: not writable")

    # Writing ---------------------------------------------------------------------------------

    @property
    def busy(self) -> bool:
        """Whether a version is still on its way to the disk."""
        return not self._idle.is_set()

    def offer(self, manifest: Manifest, states: Mapping[str, Bytes]) -> None:
        """Write a version in the background. The states must not change until it is there.

        What is small and goes into memory is written at once. A disk that refuses costs one line
        on stderr, not the job.
        """
        assert not self.busy, "a version is still being written"
        if self._in_memory and sum(data.nbytes for data in states.values()) <= _AT_ONCE_BYTES:
            self._write(manifest, states)
            return
        self._idle.clear()
        if self._thread is None or not self._thread.is_alive():
            self._work = queue.SimpleQueue()
            # One for all versions: to start one makes the caller wait for it to run.
            self._thread = threading.Thread(target=self._serve, name="checkpoint", daemon=True)
            self._thread.start()
        self._work.put((manifest, dict(states)))

    def take(self, nbytes: int) -> Bytes | None:
        """Memory to make a state of the next version in, so that it need not be copied when it is
        offered. None where there is none: on a disk, or for what is not written at once."""
        if not isinstance(self._medium, Slots) or self.busy or nbytes > _AT_ONCE_BYTES:
            return None
        return self._medium.take(nbytes, self._stay)

    def lends(self, state: Bytes) -> bool:
        """Whether a state lies in memory that was taken, and will be written over."""
        return isinstance(self._medium, Slots) and self._medium.lends(state)

    def drain(self, timeout_s: float | None = None) -> bool:
        """Wait until nothing is being written any more; whether that came in time."""
        return self._idle.wait(timeout_s)

    def close(self) -> None:
        """Let what is being written come to its end, and the thread with it."""
        self.drain()
        if self._thread is not None:
            self._work.put(None)
            self._thread.join()
            self._thread = None

    def _serve(self) -> None:
        work = self._work
        while (offered := work.get()) is not None:
            try:
                self._write(*offered)
            except Exception:  # a thread that ends here would be offered the next version yet
                traceback.print_exc()
            finally:
                self._idle.set()
            del offered  # or the states stay until the next version

    def _write(self, manifest: Manifest, states: Mapping[str, Bytes]) -> None:
        try:
            self._medium.write(manifest, states, self._stay)
        except OSError as error:
            path = error.filename or self.directory
            text = f"checkpoint of version {manifest.version} not written: {path}: {error.strerror}"
            print(f"diml: rank {manifest.rank}: {text}", file=sys.stderr, flush=True)
            return
        self.written = manifest.version

    @property
    def _stay(self) -> list[Order] | None:
        return list(self._whole) if len(self._whole) >= self._keep else None

    def confirm(self, attempt: int, version: int, run: str | None = None) -> None:
        """All processes have written this version: older ones may go once `keep` are whole."""
        order = (attempt, version, run if run is not None else self._run)
        if order not in self._whole:
            self._whole = sorted([*self._whole, order])[-self._keep :]

    # Reading ---------------------------------------------------------------------------------

    def view(self) -> str:
        """Fingerprint of what `listed` gives: equal for processes that see one directory.

        Different directories with an equal one hold the same shards of the same run. Raises Misuse
        where the directory cannot be read.
        """
        try:
            names = [str(path.relative_to(self.directory)) for path in self._medium.listed()]
        except OSError as error:
            words = f"{error.filename or self.directory}: {error.strerror}"
            raise Misuse(f"checkpoint directory {words}") from None
        return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]

    def found(self, part: int = 0, parts: int = 1) -> list[Found]:
        """The shards in the directory, each checked but for the bytes of its states.

        Processes that see the same directory each look at one part of it.
        """
        shards = (self._medium.found(path) for path in self._medium.listed()[part::parts])
        return [shard for shard in shards if shard is not None]

    def read(self, manifest: Manifest, name: str) -> Bytes:
        """One encoded state of a shard that was found, all of it checked.

        Raises CorruptState, naming the file.
        """
        return self._medium.read(manifest, name)


def any_in(directory: Path, in_memory: bool) -> bool:
    """Whether there is a checkpoint, or a part of one, that looks sound."""
    medium: Medium = (Slots if in_memory else Disk)(directory, "")
    try:
        shards = (medium.found(path) for path in medium.listed())
        return any(shard is not None and not shard.problem for shard in shards)
    except OSError:
        return False


def look(
    gather: Callable[[Any], Any],
    rank: int,
    vaults: Sequence[Vault],
    views: Sequence[Sequence[str]],
) -> list[Shelf]:
    """What all processes see together, each having looked at its part of what it shares.

    Args:
        gather: gives everybody's value by rank; every process calls this function.
        rank: of this process.
        vaults: its directories.
        views: by rank and directory, `Vault.view`.
    """
    seen: dict[tuple[int, str], list[int]] = {}
    for process, names in enumerate(views):
        for shelf in enumerate(names):
            seen.setdefault(shelf, []).append(process)
    mine: list[list[Found]] = []
    for place, name in enumerate(views[rank]):
        group = seen[place, name]
        mine.append(vaults[place].found(group.index(rank), len(group)))
    everyone: list[list[list[Found]]] = gather(mine)
    return [
        Shelf(place, group, [found for process in group for found in everyone[process][place]])
        for (place, _), group in seen.items()
    ]


def next_attempt(shelves: Sequence[Shelf]) -> int:
    """The number of a run that begins now."""
    return 1 + max((found.order[0] for shelf in shelves for found in shelf.found), default=0)


def choose(
    shelves: Sequence[Shelf], identity: Identity | None, size: int | None
) -> tuple[list[Candidate], list[str]]:
    """The versions to go on from, newest first, and a line for each that cannot be used.

    Pure, so that all processes that know all shelves come to the same choice.

    Args:
        shelves: what there is, and who sees it.
        identity: this job's. None: it is compared later.
        size: its number of workers; a version with local states needs the same number. None: any.

    Raises Misuse if a version is another job's: going on would mix two jobs in one directory.
    """
    versions: dict[Order, list[tuple[Shelf, Found]]] = {}
    for shelf in shelves:
        for found in shelf.found:
            versions.setdefault(found.order, []).append((shelf, found))
    candidates, problems = [], []
    for order in sorted(versions, reverse=True):
        manifests = [found.manifest for _, found in versions[order] if found.manifest is not None]
        for manifest in manifests:
            if identity and (difference := identity.difference(manifest.identity)):
                raise Misuse(f"the checkpoint {manifest.folder} is another job's: {difference}")
        holders = _holders(versions[order])
        bad = sorted({found.problem for _, found in versions[order] if found.problem})
        needs = manifests[0].needs if manifests else frozenset(("model",))
        if lacking := sorted(needs - holders.keys()):
            why = bad[0] if bad else f"{lacking[0]} is missing"
            problems.append(f"checkpoint of version {order[1]} skipped: {why}")
        elif manifests[0].uses_local and size not in (None, manifests[0].size):
            problems.append(
                f"checkpoint of version {order[1]} skipped: {manifests[0].size} workers wrote it, "
                f"each with a state of its own; this run has {size}"
            )
        else:
            first = manifests[0]
            candidates.append(Candidate(order, first.size, first.uses_local, holders))
    return candidates, problems


def _holders(shards: Sequence[tuple[Shelf, Found]]) -> dict[str, Holder]:
    """Who reads which piece: its own rank if that sees it, else the lowest that does."""
    holders: dict[str, Holder] = {}
    for shelf, found in shards:
        if found.problem or found.manifest is None:
            continue
        for piece in found.manifest.pieces:
            reader = _reader(piece.name, shelf.processes)
            if piece.name not in holders or piece.name == local_name(reader):
                holders[piece.name] = Holder(reader, shelf.place, found.manifest)
    return holders


def _reader(name: str, processes: Sequence[int]) -> int:
    owner = local_owner(name)
    at = -1 if owner is None else bisect_left(processes, owner)
    return processes[at if 0 <= at < len(processes) and processes[at] == owner else 0]
