"""Versions in the memory of a node: three slots a rank, mapped files, written over in turns.

Owns these files, in the folder that `diml run` makes for one run of a job and removes with all that
is in it. Nothing here calls the system once the files are there, and the largest state may be
made in a slot to begin with: a version costs little where one is made every few milliseconds. Must
not know MPI or threads.

A slot is a header (where the manifest is, and a checksum of the header), the states one after the
other, and their manifest as text. Invariants: the header is wiped before and written after all
else, so a slot that was cut short holds nothing; the newest version that is known to be whole on
all ranks is not written over, nor is the newest one: hence three. What was lent is not lent again
while somebody refers to it. A file is of one process, whose name holds a word that no other one
uses, so who replaces a dead rank leaves its slots alone until it has a whole version of its own.
"""

from __future__ import annotations

import contextlib
import mmap
import os
import re
import struct
import uuid
import weakref
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from diml.checkpoint import codec
from diml.checkpoint.codec import Bytes
from diml.checkpoint.manifest import Found, Manifest, Order, Piece, from_text, to_text
from diml.checkpoint.shard import read_piece
from diml.errors import CorruptState

_NAME = re.compile(r"(\d{4,})-([0-9A-Za-z]+)-rank-(\d{5,})-([0-9a-f]{8})-[0-2]\.slot")
# magic, first byte of the manifest, its length; then the CRC-32 of these
_HEADER, _CRC = struct.Struct("<8sQQ"), struct.Struct("<I")
_HEADER_BYTES = 64
_MAGIC = b"DIMLSLOT"
_EMPTY = bytes(_HEADER_BYTES)
# States that grow a little with every version get a new mapping now and then only.
_ROOM_BYTES = 1 << 16


class Slots:
    """One process's slots, and its view of all those in the folder."""

    def __init__(self, directory: Path, run: str) -> None:
        """Makes no file yet. `run` is the name of this run, the same on all its processes."""
        self._directory, self._run = directory, run
        self._word = uuid.uuid4().hex[:8]
        self._slots = (_Slot(), _Slot(), _Slot())
        self._alone = False

    def write(
        self, manifest: Manifest, states: Mapping[str, Bytes], stay: Sequence[Order] | None
    ) -> None:
        """Write this rank's part over the oldest one, but not over the newest of `stay`.

        A state that lies in what was lent is not copied. Raises OSError if there is no memory left.
        """
        whole = stay[-1] if stay else None
        if not self._alone and whole and whole in [slot.order for slot in self._slots]:
            self._remove_others(manifest)
            self._alone = True
        if not states:
            return
        here = [(name, slot) for name, data in states.items() if (slot := self._lender(data))]
        first, slot = here[0] if here else (None, self._oldest(self._free(whole)))
        assert slot is not None  # two are kept at most
        path = self._path(manifest, self._word, self._slots.index(slot))
        # What is there already is what the slot begins with.
        names = sorted(states, key=lambda name: name != first)
        slot.write(path, manifest, {name: states[name] for name in names}, bool(here))

    def take(self, nbytes: int, stay: Sequence[Order] | None) -> Bytes | None:
        """Memory to make a state of the next version in; None if no slot is free and large enough.

        It is the caller's as long as it refers to it, and no other version is written.
        """
        free = self._free(stay[-1] if stay else None)
        slot = self._oldest([slot for slot in free if slot.lent() is None])
        return slot.lend(nbytes) if slot is not None else None

    def lends(self, state: Bytes) -> bool:
        """Whether a state lies in what was lent."""
        return self._lender(state) is not None

    def _lender(self, state: Bytes) -> _Slot | None:
        return next((slot for slot in self._slots if slot.lent() is state), None)

    def _free(self, whole: Order | None) -> list[_Slot]:
        newest = max((slot.order for slot in self._slots if slot.order), default=None)
        kept = [order for order in (whole, newest) if order is not None]
        return [slot for slot in self._slots if slot.order not in kept]

    def _oldest(self, slots: Sequence[_Slot]) -> _Slot | None:
        return min(slots, key=lambda slot: slot.order or (0, 0, ""), default=None)

    def _path(self, manifest: Manifest, word: str, number: int) -> Path:
        stem = f"{manifest.attempt:04d}-{manifest.run}-rank-{manifest.rank:05d}"
        return self._directory / f"{stem}-{word}-{number}.slot"

    def _remove_others(self, manifest: Manifest) -> None:
        """Remove the slots of earlier runs, and those of who had this rank before."""
        for path in self.listed():
            attempt, run, rank, word = _parts(path)
            before = attempt < manifest.attempt and run != self._run
            mine = run == self._run and rank == manifest.rank and word != self._word
            if before or mine:
                path.unlink(missing_ok=True)

    def listed(self) -> list[Path]:
        """What there is to look at: this user's slots."""
        paths = []
        for path in sorted(self._directory.glob("*.slot")):
            # Others delete what is old meanwhile.
            with contextlib.suppress(FileNotFoundError):
                if _NAME.fullmatch(path.name) and path.stat().st_uid == os.geteuid():
                    paths.append(path)
        return paths

    def found(self, path: Path) -> Found | None:
        """What a slot holds, checked but for the bytes of its states; None if it holds nothing."""
        attempt, run, rank, _ = _parts(path)
        try:
            manifest = _read(path)
            if manifest is None:
                return None
            if (manifest.attempt, manifest.run, manifest.rank) != (attempt, run, rank):
                raise CorruptState(f"{path}: tells of {manifest.folder}, rank {manifest.rank}")
        except CorruptState as error:
            return Found((attempt, 0, run), None, str(error))
        return Found((attempt, manifest.version, run), manifest)

    def read(self, manifest: Manifest, name: str) -> Bytes:
        """One encoded state, all of it checked. Raises CorruptState, naming the file."""
        pattern = self._path(manifest, "*", 0).name.replace("-0.slot", "-?.slot")
        for path in self._directory.glob(pattern):
            if _read(path) == manifest:
                return read_piece(path, manifest.piece(name))
        raise CorruptState(f"{self._directory / pattern}: version {manifest.version} is gone")


class _Slot:
    """A mapped file that is written over.

    Attributes:
        order: what it holds; None while it holds nothing.
        lent: gives the memory that was lent, as long as somebody has it.
    """

    def __init__(self) -> None:
        self.order: Order | None = None
        self.lent: Callable[[], Bytes | None] = lambda: None
        self._view: Bytes = np.empty(0, np.uint8)

    def lend(self, nbytes: int) -> Bytes | None:
        """The place of the first state, if there is that much; the slot holds nothing any more."""
        if _HEADER_BYTES + nbytes > self._view.size:
            return None
        self.order = None
        self._view.data[:_HEADER_BYTES] = _EMPTY
        place = self._view[_HEADER_BYTES : _HEADER_BYTES + nbytes]
        self.lent = weakref.ref(place)
        return place

    def write(
        self, path: Path, manifest: Manifest, states: Mapping[str, Bytes], first_is_here: bool
    ) -> None:
        """Fill it; with `first_is_here` the first state lies in what was lent."""
        ends = np.cumsum([_HEADER_BYTES, *(data.size for data in states.values())]).tolist()
        pieces = tuple(
            Piece(name, offset, data.size, codec.fingerprint(data))
            for offset, (name, data) in zip(ends, states.items(), strict=False)
        )
        text = to_text(replace(manifest, pieces=pieces)).encode("ascii")
        self.order = None
        if ends[-1] + len(text) > self._view.size:
            self._map(path, ends[-1] + len(text) + _ROOM_BYTES)
        view = self._view
        view.data[:_HEADER_BYTES] = _EMPTY
        for piece, data in [*zip(pieces, states.values(), strict=True)][first_is_here:]:
            view[piece.offset : piece.offset + piece.nbytes] = data
        view.data[ends[-1] : ends[-1] + len(text)] = text
        header = _HEADER.pack(_MAGIC, ends[-1], len(text))
        header += bytes(_HEADER_BYTES - _CRC.size - len(header))
        # The checksum comes last: without it there is nothing.
        view.data[: len(header)] = header
        _CRC.pack_into(view.data, len(header), zlib.crc32(header))
        self.order = (manifest.attempt, manifest.version, manifest.run)

    def _map(self, path: Path, nbytes: int) -> None:
        """A larger mapping, with all its pages there: one that is missing later ends the process.

        Raises OSError if there are not that many.
        """
        self._view = np.empty(0, np.uint8)
        descriptor = os.open(path, os.O_CREAT | os.O_RDWR, 0o600)
        try:
            os.pwrite(descriptor, _EMPTY, 0)
            os.posix_fallocate(descriptor, 0, nbytes)
            flags = mmap.MAP_SHARED | getattr(mmap, "MAP_POPULATE", 0)
            self._view = np.frombuffer(mmap.mmap(descriptor, nbytes, flags=flags), np.uint8)
        finally:
            os.close(descriptor)


def _parts(path: Path) -> tuple[int, str, int, str]:
    """(attempt, run, rank, the process's word) of a slot's name."""
    match = _NAME.fullmatch(path.name)
    assert match is not None
    return int(match[1]), match[2], int(match[3]), match[4]


def _read(path: Path) -> Manifest | None:
    """The manifest in a slot; None if it is empty, or was cut short. Raises CorruptState."""
    try:
        with path.open("rb") as file:
            header = file.read(_HEADER_BYTES)
            body, last = header[: -_CRC.size], header[-_CRC.size :]
            if not any(last):
                return None
            if len(header) < _HEADER_BYTES:
                raise CorruptState(f"{path}: cut short")
            magic, start, length = _HEADER.unpack_from(body)
            if zlib.crc32(body) != _CRC.unpack(last)[0] or magic != _MAGIC:
                raise CorruptState(f"{path}: damaged (its checksum differs)")
            file.seek(start)
            text = file.read(length)
    except OSError as error:
        raise CorruptState(f"{path}: {error.strerror}") from None
    try:
        return from_text(text.decode("ascii"), path)
    except UnicodeDecodeError:
        raise CorruptState(f"{path}: not a manifest, or damaged") from None
