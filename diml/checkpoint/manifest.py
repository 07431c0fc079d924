"""What a rank says of the part of a checkpoint that it has written: the manifest, and its text.

Owns these values and the one text that a manifest has. Must not know files, MPI or threads.
Invariants: a text is read back as the manifest that it was made of, or CorruptState is raised; no
pickle.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

from diml.errors import CorruptState

FORMAT = 3

Order: TypeAlias = tuple[int, int, str]
"""(attempt, version, run): the greatest is the newest."""


@dataclass(frozen=True, slots=True)
class Identity:
    """Whose checkpoint it is. Only a job with an equal one may go on from it.

    Attributes:
        program: module or script.
        seed: the run's seed.
        facts: what else the job has told (the fingerprint of its data, mostly), by name.
    """

    program: str
    seed: int
    facts: Mapping[str, str]

    def difference(self, other: Identity) -> str:
        """In words what `other`, read from a disk, has that differs; empty if nothing does."""
        if other.program != self.program:
            return f"it is of {other.program}, this is {self.program}"
        if other.seed != self.seed:
            return f"its seed is {other.seed}, this run's is {self.seed}"
        for name in sorted({*self.facts, *other.facts}):
            theirs, ours = other.facts.get(name, "not there"), self.facts.get(name, "not there")
            if theirs != ours:
                return f"its {name} is {theirs}, this run's is {ours}"
        return ""


@dataclass(frozen=True, slots=True)
class Piece:
    """Where one encoded state lies in the file: its first byte, its length, its checksum."""

    name: str
    offset: int
    nbytes: int
    checksum: int


@dataclass(frozen=True, slots=True)
class Manifest:
    """What a rank says of its file.

    Attributes:
        identity: whose checkpoint it is.
        attempt: how many runs have written into these directories up to this one.
        run: name of the run, so that two at once do not meet.
        version: number of committed checkpoints.
        rank, size: who wrote it, of how many.
        uses_local: whether this version has local states.
        pieces: the states in the file.
        outline: CRC-32 of all bytes of the file that belong to no piece (on a disk only).
        nbytes: length of the file.
    """

    identity: Identity
    attempt: int
    run: str
    version: int
    rank: int
    size: int
    uses_local: bool
    pieces: tuple[Piece, ...] = ()
    outline: int = 0
    nbytes: int = 0

    @property
    def folder(self) -> str:
        """Name of the directory of this version."""
        return f"{self.attempt:04d}-v{self.version:08d}-{self.run}"

    def piece(self, name: str) -> Piece:
        """The piece of that name, which there is."""
        return next(piece for piece in self.pieces if piece.name == name)

    @property
    def needs(self) -> frozenset[str]:
        """The pieces without which this version is not whole."""
        own = (local_name(rank) for rank in range(self.size if self.uses_local else 0))
        return frozenset(("model", *own))


def local_name(rank: int) -> str:
    """Name of the piece that holds a rank's local state."""
    return f"local-{rank:05d}"


def local_owner(name: str) -> int | None:
    """The rank whose local state a piece holds; None if it holds none."""
    kind, _, rank = name.partition("-")
    return int(rank) if kind == "local" else None


@dataclass(frozen=True, slots=True)
class Found:
    """A rank's part that lies in a directory, or a bad one.

    `problem` says what is wrong with one that cannot be used; `manifest` may then be missing.
    """

    order: Order
    manifest: Manifest | None
    problem: str = ""


def to_text(manifest: Manifest) -> str:
    """The one text of a manifest (ASCII), so that any other one is a damaged one."""
    body: dict[str, Any] = {"format": FORMAT, **fields(manifest)}
    facts = dict(sorted(manifest.identity.facts.items()))
    body["identity"] = {**fields(manifest.identity), "facts": facts}
    body["pieces"] = [fields(piece) for piece in manifest.pieces]
    text = json.dumps(body)
    return f'{{"checkpoint": {text}, "crc32": {zlib.crc32(text.encode())}}}\n'


def from_text(text: str, where: Path) -> Manifest:
    """The manifest that a file holds. Raises CorruptState, naming the file."""
    try:
        body = json.loads(text)["checkpoint"]
        if (version := body.pop("format")) != FORMAT:
            raise CorruptState(f"{where}: format {version}; this DiML reads {FORMAT}")
        body["identity"] = Identity(**body["identity"])
        body["pieces"] = tuple(Piece(**piece) for piece in body["pieces"])
        manifest = Manifest(**body)
    except (ValueError, TypeError, KeyError, AttributeError):
        raise CorruptState(f"{where}: not a manifest, or damaged") from None
    if to_text(manifest) != text:
        raise CorruptState(f"{where}: damaged (its checksum differs)")
    return manifest


def fields(value: Identity | Piece | Manifest) -> dict[str, Any]:
    """The attributes of one of these by name."""
    return {name: getattr(value, name) for name in value.__slots__}
