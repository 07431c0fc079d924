"""One rank's part of a durable checkpoint: a file with its states, then a manifest by rename.

Owns the two files, their names and the order in which they come to the disk. The states are
encoded trees (`codec`): opaque bytes here, held by an HDF5 file as plain data sets of uint8, so
that any HDF5 tool reads it; in the memory of a node, where a version lives for a moment, by a file
of nothing else. Must not know MPI, threads, nor which versions are wanted.

Invariants: a manifest appears only after the file that it tells of is whole and on the disk; a
name is never used for other content, since it holds the attempt and the run; every byte of both
files is covered by a checksum; files are the owner's alone (0600, directories 0700). Nothing in a
file is ever run: there is no pickle.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from diml.checkpoint import codec
from diml.errors import CorruptState

Bytes: TypeAlias = NDArray[np.uint8]

FORMAT = 2
_FOLDER = re.compile(r"(\d{4,})-v(\d{8,})-([0-9A-Za-z]+)")
# One write call takes at most 2 GiB; smaller pieces also let other threads run.
_WRITE_BYTES = 64 << 20


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
        plain: the file is the states one after the other, not HDF5.
        pieces: the states in the file.
        outline: CRC-32 of all bytes of the file that belong to no piece.
        nbytes: length of the file.
    """

    identity: Identity
    attempt: int
    run: str
    version: int
    rank: int
    size: int
    uses_local: bool
    plain: bool = False
    pieces: tuple[Piece, ...] = ()
    outline: int = 0
    nbytes: int = 0

    @property
    def folder(self) -> str:
        """Name of the directory of this version."""
        return f"{self.attempt:04d}-v{self.version:08d}-{self.run}"

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


def folder_order(name: str) -> tuple[int, int, str] | None:
    """(attempt, version, run) of a version's directory; None if it is none of ours."""
    match = _FOLDER.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2]), match[3])


def data_path(directory: Path, manifest: Manifest) -> Path:
    """The file of a rank's states."""
    suffix = "bin" if manifest.plain else "h5"
    return directory / manifest.folder / f"rank-{manifest.rank:05d}.{suffix}"


def manifest_path(directory: Path, manifest: Manifest) -> Path:
    """The manifest beside it."""
    return directory / manifest.folder / f"rank-{manifest.rank:05d}.json"


def write_shard(
    directory: Path,
    manifest: Manifest,
    states: Mapping[str, Bytes],
    *,
    sync: bool = True,
    reached: Callable[[str], None] = lambda step: None,
) -> Manifest:
    """Bring one rank's states to the disk; returns the manifest as it was written.

    Args:
        states: encoded states by piece name; they must not change meanwhile.
        sync: wait until the disk has them (not needed where the directory is memory).
        reached: told of each step as it is done; tests cut the sequence there.

    Raises OSError if the disk refuses; what was written by then is never taken for a checkpoint.
    """
    folder = directory / manifest.folder
    if not folder.is_dir():
        folder.mkdir(mode=0o700, exist_ok=True)
        _sync_folder(directory, sync)
    reached("folder made")
    path = data_path(directory, manifest)
    temporary = folder / f".{path.name}"
    temporary.unlink(missing_ok=True)
    if manifest.plain:
        pieces = _in_a_row(states)
        with contextlib.suppress(FileNotFoundError):
            _old_path(directory, manifest.rank).rename(temporary)
    else:
        pieces = _lay_out(temporary, manifest, states)
    reached("file laid out")
    descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        for piece in pieces:
            _write_at(descriptor, states[piece.name], piece.offset)
            reached(f"{piece.name} written")
        if manifest.plain:
            os.ftruncate(descriptor, sum(piece.nbytes for piece in pieces))
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    reached("file synced")
    outline, nbytes = _outline(temporary, pieces), temporary.stat().st_size
    temporary.replace(path)
    _sync_folder(folder, sync)
    reached("file in place")
    whole = _completed(manifest, pieces, outline, nbytes)
    _write_text(folder / f".rank-{manifest.rank:05d}.json", _to_text(whole), sync)
    reached("manifest written")
    (folder / f".rank-{manifest.rank:05d}.json").replace(manifest_path(directory, manifest))
    _sync_folder(folder, sync)
    reached("manifest in place")
    return whole


def recycle(directory: Path, manifest: Manifest) -> None:
    """Put the file of a version that is not wanted any more aside, to be written over.

    Its manifest must be gone. In memory a new file costs more than what is written into it: each
    of its pages is fetched and cleared first.
    """
    with contextlib.suppress(FileNotFoundError):
        data_path(directory, manifest).rename(_old_path(directory, manifest.rank))


def _old_path(directory: Path, rank: int) -> Path:
    return directory / f".old-rank-{rank:05d}.bin"


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises CorruptState, naming the file, if it is damaged or unreadable."""
    try:
        text = path.read_text(encoding="ascii")
        content = json.loads(text)
        body = content["checkpoint"]
        body["identity"] = Identity(**body["identity"])
        body["pieces"] = tuple(Piece(**piece) for piece in body["pieces"])
        version = body.pop("format")
        manifest = Manifest(**body)
    except OSError as error:
        raise CorruptState(f"{path}: {error.strerror}") from None
    except (ValueError, TypeError, KeyError, AttributeError):
        raise CorruptState(f"{path}: not a manifest, or damaged") from None
    if version != FORMAT:
        raise CorruptState(f"{path}: format {version}; this DiML reads {FORMAT}")
    if _to_text(manifest) != text:
        raise CorruptState(f"{path}: damaged (its checksum differs)")
    return manifest


def check_file(directory: Path, manifest: Manifest) -> None:
    """Check, without reading the states, that the file beside a manifest can be it.

    Raises CorruptState, naming the file.
    """
    path = data_path(directory, manifest)
    try:
        nbytes = path.stat().st_size
        if nbytes != manifest.nbytes:
            raise CorruptState(f"{path}: has {nbytes} bytes in place of {manifest.nbytes}")
        if _outline(path, manifest.pieces) != manifest.outline:
            raise CorruptState(f"{path}: damaged outside of its states (checksum differs)")
    except OSError as error:
        raise CorruptState(f"{path}: {error.strerror}") from None


def read_piece(directory: Path, manifest: Manifest, name: str) -> Bytes:
    """Read one encoded state and check all of it. Raises CorruptState, naming the file."""
    path = data_path(directory, manifest)
    piece = next(piece for piece in manifest.pieces if piece.name == name)
    try:
        data = np.fromfile(path, np.uint8, piece.nbytes, offset=piece.offset)
    except OSError as error:
        raise CorruptState(f"{path}: {error.strerror}") from None
    try:
        codec.verify(data)
    except CorruptState as error:
        raise CorruptState(f"{path}: {name}: {error}") from None
    if codec.fingerprint(data) != piece.checksum:
        raise CorruptState(f"{path}: {name}: not the state that its manifest tells of")
    return data


def _in_a_row(states: Mapping[str, Bytes]) -> tuple[Piece, ...]:
    """Places for the states in a file that has nothing else."""
    ends = np.cumsum([0, *(data.size for data in states.values())]).tolist()
    return tuple(
        Piece(name, offset, data.size, codec.fingerprint(data))
        for offset, (name, data) in zip(ends, states.items(), strict=False)
    )


def _lay_out(path: Path, manifest: Manifest, states: Mapping[str, Bytes]) -> tuple[Piece, ...]:
    """Make an HDF5 file with room for the states; the states themselves go in by plain writes.

    HDF5 would hold the interpreter while it writes, and the job with it.
    """
    import h5py  # not at the top: it costs every rank of every job a third of a second

    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_layout(h5py.h5d.CONTIGUOUS)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    pieces = []
    with h5py.File(path, "w", locking=False) as file:
        for name in ("attempt", "run", "version", "rank", "size"):
            file.attrs[name] = getattr(manifest, name)
        for name, data in states.items():
            space = h5py.h5s.create_simple((data.size,))
            made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.STD_U8LE, space, dcpl=early)
            offset = int(made.get_offset())
            pieces.append(Piece(name, offset, data.size, codec.fingerprint(data)))
    return tuple(pieces)


def _outline(path: Path, pieces: tuple[Piece, ...]) -> int:
    """CRC-32 of the bytes of a file that lie in none of its pieces."""
    crc, position = 0, 0
    with path.open("rb") as file:
        for piece in sorted(pieces, key=lambda piece: piece.offset):
            file.seek(position)
            crc = zlib.crc32(file.read(piece.offset - position), crc)
            position = piece.offset + piece.nbytes
        file.seek(position)
        return zlib.crc32(file.read(), crc)


def _completed(
    manifest: Manifest, pieces: tuple[Piece, ...], outline: int, nbytes: int
) -> Manifest:
    return Manifest(**{**_fields(manifest), "pieces": pieces, "outline": outline, "nbytes": nbytes})


def _to_text(manifest: Manifest) -> str:
    """The one text of a manifest, so that any other one is a damaged one."""
    body: dict[str, Any] = {"format": FORMAT, **_fields(manifest)}
    facts = dict(sorted(manifest.identity.facts.items()))
    body["identity"] = {**_fields(manifest.identity), "facts": facts}
    body["pieces"] = [_fields(piece) for piece in manifest.pieces]
    text = json.dumps(body)
    return f'{{"checkpoint": {text}, "crc32": {zlib.crc32(text.encode())}}}\n'


def _fields(value: Identity | Piece | Manifest) -> dict[str, Any]:
    return {name: getattr(value, name) for name in value.__slots__}


def _write_text(path: Path, text: str, sync: bool) -> None:
    descriptor = os.open(path, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
    try:
        _write_at(descriptor, np.frombuffer(text.encode("ascii"), np.uint8), 0)
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _write_at(descriptor: int, data: Bytes, offset: int) -> None:
    view, done = data.data, 0
    while done < data.size:
        done += os.pwrite(descriptor, view[done : done + _WRITE_BYTES], offset + done)


def _sync_folder(folder: Path, sync: bool) -> None:
    """Make names that were given or renamed in a directory last."""
    if not sync:
        return
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
