"""One rank's part of a durable checkpoint: a file with its states, then a manifest by rename.

Owns the two files, their names and the order in which they come to the disk. The states are
encoded trees (`codec`): opaque bytes here, held by an HDF5 file as plain data sets of uint8, so
that any HDF5 tool reads it. Must not know MPI, threads, nor which versions are wanted.

Invariants: a manifest appears only after the file that it tells of is whole and on the disk; a
name is never used for other content, since it holds the attempt and the run; every byte of both
files is covered by a checksum; files are the owner's alone (0600, directories 0700). Nothing in a
file is ever run: there is no pickle.
"""

from __future__ import annotations

import errno
import os
import re
import zlib
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from diml.checkpoint import codec
from diml.checkpoint.codec import Bytes
from diml.checkpoint.manifest import Manifest, Order, Piece, from_text, to_text
from diml.errors import CorruptState

_FOLDER = re.compile(r"(\d{4,})-v(\d{8,})-([0-9A-Za-z]+)")
# One write call takes at most 2 GiB; smaller pieces also let other threads run.
_WRITE_BYTES = 64 << 20


def folder_order(name: str) -> Order | None:
    """(attempt, version, run) of a version's directory; None if it is none of ours."""
    match = _FOLDER.fullmatch(name)
    return None if match is None else (int(match[1]), int(match[2]), match[3])


def data_path(directory: Path, manifest: Manifest) -> Path:
    """The file of a rank's states."""
    return directory / manifest.folder / f"rank-{manifest.rank:05d}.h5"


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
        sync: wait until the disk has them.
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
    pieces = _lay_out(temporary, manifest, states)
    reached("file laid out")
    descriptor = os.open(temporary, os.O_CREAT | os.O_WRONLY, 0o600)
    try:
        for piece in pieces:
            _write_at(descriptor, states[piece.name], piece.offset)
            reached(f"{piece.name} written")
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
    reached("file synced")
    outline, nbytes = _outline(temporary, pieces), temporary.stat().st_size
    temporary.replace(path)
    _sync_folder(folder, sync)
    reached("file in place")
    whole = replace(manifest, pieces=pieces, outline=outline, nbytes=nbytes)
    _write_text(folder / f".rank-{manifest.rank:05d}.json", to_text(whole), sync)
    reached("manifest written")
    (folder / f".rank-{manifest.rank:05d}.json").replace(manifest_path(directory, manifest))
    _sync_folder(folder, sync)
    reached("manifest in place")
    return whole


def read_manifest(path: Path) -> Manifest:
    """Read a manifest. Raises CorruptState, naming the file, if it is damaged or unreadable."""
    try:
        text = path.read_text(encoding="ascii")
    except OSError as error:
        raise CorruptState(f"{path}: {error.strerror}") from None
    except ValueError:
        raise CorruptState(f"{path}: not a manifest, or damaged") from None
    return from_text(text, path)


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


def read_piece(path: Path, piece: Piece) -> Bytes:
    """Read one encoded state and check all of it. Raises CorruptState, naming the file."""
    try:
        data = np.fromfile(path, np.uint8, piece.nbytes, offset=piece.offset)
    except OSError as error:
        raise CorruptState(f"{path}: {error.strerror}") from None
    try:
        codec.verify(data)
    except CorruptState as error:
        raise CorruptState(f"{path}: {piece.name}: {error}") from None
    if codec.fingerprint(data) != piece.checksum:
        raise CorruptState(f"{path}: {piece.name}: not the state that its manifest tells of")
    return data


def _lay_out(path: Path, manifest: Manifest, states: Mapping[str, Bytes]) -> tuple[Piece, ...]:
    """Make an HDF5 file with room for the states; the states themselves go in by plain writes.

    HDF5 would hold the interpreter while it writes, and the job with it. Raises OSError if the
    disk refuses.
    """
    import h5py  # not at the top: it costs every rank of every job a third of a second

    os.close(os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o600))
    early = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    early.set_layout(h5py.h5d.CONTIGUOUS)
    early.set_alloc_time(h5py.h5d.ALLOC_TIME_EARLY)
    early.set_fill_time(h5py.h5d.FILL_TIME_NEVER)
    pieces = []
    try:
        with h5py.File(path, "w", locking=False) as file:
            for name in ("attempt", "run", "version", "rank", "size"):
                file.attrs[name] = getattr(manifest, name)
            for name, data in states.items():
                space = h5py.h5s.create_simple((data.size,))
                made = h5py.h5d.create(file.id, name.encode(), h5py.h5t.STD_U8LE, space, dcpl=early)
                offset = int(made.get_offset())
                pieces.append(Piece(name, offset, data.size, codec.fingerprint(data)))
    except (OSError, RuntimeError, ValueError) as error:
        # HDF5 has words of its own for a full disk, and a kind of error for each of its steps.
        number = re.search(r"errno = (\d+)", str(error))
        code = int(number[1]) if number else errno.EIO
        raise OSError(code, os.strerror(code), str(path)) from None
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
