"""The parameter server's durable checkpoints: where they are, and what a run goes on from.

Owns the directories of snapshots (`ps` below each place that `diml.checkpoint.keeper` names), and
the choice at the start. `diml.checkpoint.durable` and `shard` own the files. Each server writes
its shard as one piece, server 0 an outline as well; a version is whole when the pieces of all
servers are there. Must not know messages.

Everything that is collective here is so over all processes of the job: a piece may lie on the disk
of a node where only a worker can see it.
"""

from __future__ import annotations

import sys
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal, NamedTuple

import numpy as np

from diml.checkpoint.codec import Bytes, decode, encode
from diml.checkpoint.durable import (
    Candidate,
    Shelf,
    Vault,
    any_in,
    choose,
    look,
    next_attempt,
)
from diml.checkpoint.keeper import Place, places_of, program_name
from diml.checkpoint.manifest import Identity, Manifest, local_name
from diml.config import Settings
from diml.errors import CorruptState, Misuse
from diml.ps.message import Ids, Message
from diml.ps.saving import STOP
from diml.ps.shard import Shard
from diml.ps.snapshot import Assembly, Origin, Snapshot
from diml.ps.transfer import receive_bytes, send_bytes

if TYPE_CHECKING:
    from diml.world.link import Link

# The memory of the node costs a copy and a meeting of the workers: not at every clock.
_MEMORY_EVERY_S = 5.0
_NOTHING = np.empty(0, np.uint8)


class Known(NamedTuple):
    """What all processes agree on at the start, and tell those that join later."""

    run: str
    attempt: int
    origin: Origin | None
    problem: str


class Durable:
    """One process's part; the storage of the shard that it serves.

    Attributes:
        origin: the checkpoint that this run goes on from, or None.
        problem: why the newest one is not gone on from, if it is not.
    """

    def __init__(
        self,
        places: Sequence[Place],
        resume: Literal["auto", "never", "must"],
        seed: int,
        keep: int = 2,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """Nothing is read or written before `restore` or `join`."""
        self.resume, self._seed, self._keep, self._clock = resume, seed, keep, clock
        self._places = [
            Place(place.directory / "ps", max(place.every_s, _MEMORY_EVERY_S), True)
            if place.in_memory
            else Place(place.directory / "ps", place.every_s)
            for place in places
        ]
        self._last_s = [clock()] * len(self._places)
        # Own pieces, and those of another shard of which this process holds the replica.
        self._vaults: list[Vault] = []
        self._mirrors: list[Vault] = []
        self._known = Known("", 0, None, "")

    @classmethod
    def of(cls, settings: Settings, env: Mapping[str, str]) -> Durable | None:
        """The storage that a run was told to have, if any."""
        places, resume = places_of(settings, env)
        return cls(places, resume, settings.seed, settings.keep) if places else None

    @property
    def origin(self) -> Origin | None:
        """The checkpoint that this run goes on from."""
        return self._known.origin

    @property
    def problem(self) -> str:
        """Why there is none, in words."""
        return self._known.problem or "there is none"

    @property
    def where(self) -> Path:
        """The first of its directories."""
        return self._places[0].directory

    def identity(self, facts: Mapping[str, object]) -> Identity:
        """What this run's checkpoints say of it."""
        return Identity(program_name(), self._seed, {name: str(x) for name, x in facts.items()})

    def resumable(self) -> bool:
        """Whether this process sees a durable checkpoint, or parts of one."""
        return any(any_in(place.directory, place.in_memory) for place in self._places)

    # At the start ----------------------------------------------------------------------------

    def restore(
        self, link: Link, placed: Sequence[Sequence[int]], workers: int
    ) -> dict[int, Shard]:
        """Go on from the newest checkpoint that is whole and sound, if that is wanted.

        Collective over the link. `placed` are by shard the ranks that hold it. Returns the shards
        that this process holds; none on a fresh start. Each checkpoint that is skipped is named on
        stderr. Raises Misuse, on all alike, if a directory cannot be used, and PeerFailed.
        """
        shelves = self._meet(link)
        if self.resume == "never":
            return {}
        candidates, problems = choose(shelves, None, None)
        for candidate in candidates:
            reader = _Reader(link, self._vaults, candidate, shelves)
            shards, origin = reader.read(placed, workers)
            bad = [text for text in link.allgather_objects(reader.problem) if text]
            if not bad:
                assert origin is not None
                self._known = self._known._replace(origin=origin)
                for vault in self._vaults:
                    vault.confirm(*candidate.order)
                break
            problems.append(f"checkpoint of version {candidate.version} skipped: {bad[0]}")
            shards = {}
        else:
            shards = {}
        self._known = self._known._replace(problem=problems[0] if problems else "")
        for line in problems if link.rank == 0 else ():
            print(f"diml: parameter server: {line}", file=sys.stderr, flush=True)
        return shards

    def _meet(self, link: Link) -> list[Shelf]:
        """See together what there is; opens the vaults."""
        run, problem, views = uuid.uuid4().hex[:12], "", []
        try:
            vaults = [Vault(p.directory, run, in_memory=p.in_memory) for p in self._places]
            views = [vault.view() for vault in vaults]
        except Misuse as error:
            problem = str(error)
        said = link.allgather_objects((run, problem, views))
        if problems := [problem for _, problem, _ in said if problem]:
            raise Misuse(problems[0])
        self._known = Known(said[0][0], 0, None, "")
        self._open()
        views_of_all = [views for _, _, views in said]
        shelves = look(link.allgather_objects, link.rank, self._vaults, views_of_all)
        self._known = self._known._replace(attempt=next_attempt(shelves))
        return shelves

    def join(self, link: Link) -> None:
        """After a repair of a job that is under way: newcomers learn what was agreed on."""
        known = next(known for known in link.allgather_objects(self._known) if known.run)
        if not self._known.run:
            self._known = known
            self._open()

    def _open(self) -> None:
        self._vaults, self._mirrors = self._new_vaults(), self._new_vaults()

    def _new_vaults(self) -> list[Vault]:
        return [
            Vault(
                place.directory,
                self._known.run,
                keep=self._keep,
                in_memory=place.in_memory,
            )
            for place in self._places
        ]

    # Storage (see `diml.ps.saving`) ----------------------------------------------------------

    def due(self, stop: bool) -> int:
        """The places whose time has come; the disks at once if the job is to stop."""
        decision, now = 0, self._clock()
        for number, place in enumerate(self._places):
            if stop and not place.in_memory:
                decision |= STOP | 2 << number
            elif now - self._last_s[number] >= place.every_s and not self._vaults[number].busy:
                decision |= 2 << number
        return decision

    def store(self, decision: int, snapshot: Snapshot, mirrored: bool) -> Bytes | None:
        """Copy a snapshot, and write it in the background. What goes into the memory of this node
        goes into that of a replica's as well: the node may be lost, with all that is on it."""
        shard, now = snapshot.shard, self._clock()
        pieces = {local_name(shard.index): encode(snapshot.to_tree(), "snapshot")}
        if shard.index == 0:
            pieces["model"] = encode(snapshot.outline(), "outline")
        known, identity = self._known, self.identity(snapshot.facts)
        about = (identity, known.attempt, known.run, snapshot.clock, shard.index, shard.shards)
        for number, vault in enumerate(self._vaults):
            if decision & 2 << number:
                vault.drain()
                vault.offer(Manifest(*about, uses_local=True), pieces)
                self._last_s[number] = now
        in_memory = any(place.in_memory for place in self._chosen(decision))
        if not (mirrored and in_memory):
            return None
        return encode({"facts": dict(snapshot.facts), "pieces": pieces}, "mirror")

    def mirror(self, message: Message, shards: int) -> None:
        """Keep another shard's pieces in the memory of this node; left out while the one before
        is still being written."""
        content = decode(message.values.reshape(-1))
        known, identity = self._known, self.identity(content["facts"])
        about = (identity, known.attempt, known.run, message.clock, shards + message.shard, shards)
        confirmed = message.ids.tolist() or [0] * len(self._mirrors)
        for number, vault in enumerate(self._mirrors):
            if not (self._places[number].in_memory and message.n & 2 << number) or vault.busy:
                continue
            if confirmed[number]:
                vault.confirm(known.attempt, confirmed[number])
            vault.offer(Manifest(*about, uses_local=True), content["pieces"])

    def _chosen(self, decision: int) -> list[Place]:
        return [place for number, place in enumerate(self._places) if decision & 2 << number]

    def confirm(self, clocks: Ids) -> None:
        """Older snapshots may go."""
        for vault, clock in zip(self._vaults, clocks.tolist(), strict=False):
            if clock:
                vault.confirm(self._known.attempt, clock)

    def written(self) -> Ids:
        """The newest clock that this process has written, by place."""
        return np.array([vault.written for vault in self._vaults], np.int64)

    def busy(self) -> bool:
        """Whether anything is still being written."""
        return any(vault.busy for vault in self._vaults)

    def on_disk(self, clocks: Ids) -> int:
        """Of clocks by place the greatest that is on a disk."""
        pairs = zip(self._places, clocks.tolist(), strict=True)
        return max((clock for place, clock in pairs if not place.in_memory), default=0)

    def close(self) -> None:
        """Let what is being written come to its end."""
        for vault in (*self._vaults, *self._mirrors):
            vault.close()


class _Reader:
    """One process's part in reading a candidate: every process calls it alike."""

    def __init__(
        self,
        link: Link,
        vaults: Sequence[Vault],
        candidate: Candidate,
        shelves: Sequence[Shelf],
    ) -> None:
        self._link, self._vaults, self._candidate = link, vaults, candidate
        self._seen = [_seen(shelves, candidate, rank) for rank in range(link.size)]
        self.problem = ""

    def read(
        self, placed: Sequence[Sequence[int]], workers: int
    ) -> tuple[dict[int, Shard], Origin | None]:
        """The shards that are placed here; `problem` says what was wrong."""
        link, candidate = self._link, self._candidate
        source = self._source("model", 0)
        outline = self._piece("model") if link.rank == source else None
        identity = candidate.holders["model"].manifest.identity
        tree = link.broadcast_object(None if outline is None else decode(outline), source)
        if tree is None:
            return {}, None
        origin = Origin(candidate.version, tree["workers"], tree["uses_local"], identity)
        mine: dict[int, Assembly] = {}
        for piece in range(candidate.size):
            wanted = [
                shard for shard in range(len(placed))
                # The same number of servers: each piece is the whole shard of that number.
                if candidate.size != len(placed) or shard == piece
            ]  # fmt: skip
            data = self._move(local_name(piece), sorted({r for s in wanted for r in placed[s]}))
            tree = decode(data) if data is not None else None
            for shard in wanted:
                if tree is not None and link.rank in placed[shard]:
                    fresh = Shard(shard, len(placed), workers)
                    mine.setdefault(shard, Assembly(fresh, origin)).add(tree)
        try:
            whole = {shard: assembly.finish() for shard, assembly in mine.items()}
        except CorruptState as error:
            self.problem = self.problem or str(error)
            whole = {}
        return whole, origin

    def _move(self, piece: str, readers: Sequence[int]) -> Bytes | None:
        """A piece, where this process is one of those that need it: read here if it can be, else
        sent by the lowest rank that sees it."""
        link, data = self._link, None
        sources = {reader: self._source(piece, reader) for reader in readers}
        if link.rank in sources.values():
            data = self._piece(piece)
        for reader, source in sources.items():
            if source == link.rank != reader:
                send_bytes(link, _NOTHING if data is None else data, reader)
        if link.rank not in sources:
            return None
        if sources[link.rank] != link.rank:
            data = receive_bytes(link, sources[link.rank])
        return data if data is not None and len(data) else None

    def _source(self, piece: str, reader: int) -> int:
        if piece in self._seen[reader]:
            return reader
        return next(rank for rank, seen in enumerate(self._seen) if piece in seen)

    def _piece(self, piece: str) -> Bytes | None:
        place, manifest = self._seen[self._link.rank][piece]
        try:
            return self._vaults[place].read(manifest, piece)
        except CorruptState as error:
            self.problem = str(error)
            return None


def _seen(
    shelves: Sequence[Shelf], candidate: Candidate, rank: int
) -> dict[str, tuple[int, Manifest]]:
    """The pieces of a version that a process sees: its directory's index, and their manifest."""
    return {
        piece.name: (shelf.place, found.manifest)
        for shelf in shelves
        if rank in shelf.processes
        for found in shelf.found
        if found.order == candidate.order and found.manifest is not None and not found.problem
        for piece in found.manifest.pieces
    }
