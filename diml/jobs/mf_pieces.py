"""Pieces of a data set that lie on the nodes' own disks: who reads which, and a copy of the whole.

Owns what the workers tell each other of the files that each sees, what follows from it, and the
copy in the memory of the node. Must not know how a piece is parsed or what its entries are for.

A piece is known by its file's name, and pieces come in the order of their names, so the data are
the same whichever node holds which, in how many copies. Invariant: all workers come to the same
list of pieces, or to the same Misuse.

A replacement may sit where it does not see all pieces, and a lost node's may be on no other.
Under `diml run` the first worker of a node to come by therefore writes all entries into the
memory of the node, as a file that is whole or absent.
"""

from __future__ import annotations

import fcntl
import json
import os
import sys
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from diml.data.files import files_of
from diml.errors import Misuse
from diml.jobs.mf_data import Entries

# Of either end of a piece goes into the sum that tells whether two nodes hold the same one.
_LOOKED_AT = 1 << 16


class Gathering(Protocol):
    """What is asked of a crew here (see `diml.jobs.mf_load.Crew`)."""

    def gather_once(self, array: npt.NDArray[Any]) -> npt.NDArray[Any] | None: ...


@dataclass(frozen=True)
class Piece:
    """A piece: its path on the nodes that hold it, and the ranks of the workers that see it."""

    path: str
    readers: tuple[int, ...]


@dataclass(frozen=True)
class Survey:
    """What all workers know of the pieces together.

    Attributes:
        pieces: by name.
        copied: not all pieces are there, but all workers have a copy of the whole.
        scattered: some worker does not see all pieces.
    """

    pieces: tuple[Piece, ...]
    copied: bool = False
    scattered: bool = False


def here(name: str) -> dict[str, str]:
    """The pieces that this process sees: file name to path, by name.

    Raises Misuse where two of them have the same name.
    """
    try:
        paths = [path for path in files_of(name) if os.path.isfile(path)]
    except Misuse:
        paths = []
    seen = {os.path.basename(path): path for path in paths}
    if len(seen) < len(paths):
        raise Misuse(f"{name}: pieces are known by their file names, and two have the same")
    return dict(sorted(seen.items()))


def survey(name: str, wanted: int, crew: Gathering, has_copy: bool) -> Survey | None:
    """Find out together who sees what; None where somebody died meanwhile.

    Args:
        name: what names this node's pieces: a file, a directory or a pattern.
        wanted: how many pieces there are in all.
        has_copy: this process has a copy of all entries.

    Raises Misuse, on all workers alike, unless the nodes hold that many pieces together.
    """
    view: dict[str, Any] = {"host": os.uname().nodename, "copy": has_copy, "files": {}}
    try:
        view["files"] = {key: [path, *_looks(path)] for key, path in here(name).items()}
    except Misuse as error:
        view["wrong"] = str(error)
    except OSError as error:
        view["wrong"] = f"{error.filename}: cannot read it: {error.strerror}"
    views = _gather(crew, view)
    return None if views is None else judged(name, wanted, views)


def judged(name: str, wanted: int, views: Sequence[Mapping[str, Any]]) -> Survey:
    """What follows from what all workers see, by rank. Pure. Raises Misuse."""
    for view in views:
        if "wrong" in view:
            raise Misuse(view["wrong"])
    holders: dict[str, list[int]] = {}
    for rank, view in enumerate(views):
        for key in view["files"]:
            holders.setdefault(key, []).append(rank)
    for key, ranks in holders.items():
        first = views[ranks[0]]
        for other in (views[rank] for rank in ranks[1:]):
            if other["files"][key][1:] != first["files"][key][1:]:
                raise Misuse(
                    f"{first['files'][key][0]}: another file on {first['host']} than on "
                    f"{other['host']}: give each node's pieces names of their own"
                )
    pieces = tuple(
        Piece(views[ranks[0]]["files"][key][0], tuple(ranks))
        for key, ranks in sorted(holders.items())
    )
    if len(pieces) < wanted and all(view["copy"] for view in views):
        return Survey(pieces, copied=True)
    if len(pieces) != wanted:
        found: dict[str, set[str]] = {}
        for view in views:
            found.setdefault(view["host"], set()).update(view["files"])
        held = "; ".join(f"{host}: {', '.join(sorted(f)) or 'none'}" for host, f in found.items())
        raise Misuse(f"{name}: --pieces {wanted}, but there are {len(pieces)} ({held})")
    return Survey(pieces, scattered=any(len(view["files"]) < wanted for view in views))


def _looks(path: str) -> tuple[int, int]:
    """Length of a file, and a checksum of its beginning and its end."""
    with open(path, "rb") as file:
        length = os.fstat(file.fileno()).st_size
        begin = file.read(_LOOKED_AT)
        file.seek(max(0, length - _LOOKED_AT))
        return length, zlib.crc32(file.read(_LOOKED_AT), zlib.crc32(begin))


def _gather(crew: Gathering, value: object) -> list[Any] | None:
    """Everybody's value, by rank."""
    text = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = crew.gather_once(np.array([len(text)]))
    texts = crew.gather_once(text)
    if lengths is None or texts is None:
        return None
    parts = np.split(texts, np.cumsum(lengths)[:-1])
    return [json.loads(part.tobytes()) for part in parts]


class Copy:
    """All entries in the memory of the node, for whoever does not see all pieces later."""

    def __init__(self, folder: Path | None, asked: Sequence[object]) -> None:
        """Nothing is read or written yet.

        Args:
            folder: this run's in the memory of the node; None where there is none.
            asked: what the data were asked for by; a copy of other data is not taken.
        """
        self._folder = folder
        self._asked = json.dumps(asked)

    def __bool__(self) -> bool:
        """Whether it is there."""
        return self._head() is not None

    def keep(self, entries: Entries, shape: tuple[int, int]) -> None:
        """Write it, unless it is there or another process of this node is at it.

        Where the memory has no room for it, a line says so.
        """
        if self._folder is None:
            return
        descriptor = self._locked(fcntl.LOCK_EX | fcntl.LOCK_NB)
        if descriptor < 0:
            return
        try:
            if not self:
                self._write(self._folder, entries, shape)
        except OSError as error:
            print(
                f"diml: no copy of the data in {self._folder} ({error.strerror}): nobody can take "
                "the place of a worker that dies where not all pieces are seen",
                file=sys.stderr,
                flush=True,
            )
        finally:
            os.close(descriptor)

    def read(self) -> tuple[Entries, tuple[int, int]] | None:
        """The entries and their shape; waits for one who is writing them. None: not there."""
        descriptor = self._locked(fcntl.LOCK_SH)
        try:
            head = self._head()
            if head is None:
                return None
            assert self._folder is not None
            with open(self._folder / "entries", "rb") as file:
                file.readline()
                rows, cols = (np.fromfile(file, np.int32, head["entries"]) for _ in range(2))
                entries = Entries(rows, cols, np.fromfile(file, np.float32, head["entries"]))
        finally:
            if descriptor >= 0:
                os.close(descriptor)
        if _checksum(entries) != head["crc"]:
            raise Misuse(f"{self._folder}/entries: damaged")
        return entries, (head["rows"], head["cols"])

    def _write(self, folder: Path, entries: Entries, shape: tuple[int, int]) -> None:
        head = {"asked": self._asked, "entries": len(entries.values), "crc": _checksum(entries)}
        head |= {"rows": shape[0], "cols": shape[1]}
        part = folder / "entries.part"
        try:
            descriptor = os.open(part, os.O_CREAT | os.O_TRUNC | os.O_WRONLY, 0o600)
            with open(descriptor, "wb") as file:
                file.write(json.dumps(head).encode() + b"\n")
                for array in entries:
                    file.write(np.ascontiguousarray(array).data)
            part.rename(folder / "entries")
        except OSError:
            part.unlink(missing_ok=True)
            raise

    def _head(self) -> dict[str, Any] | None:
        if self._folder is None:
            return None
        try:
            with open(self._folder / "entries", "rb") as file:
                head: dict[str, Any] = json.loads(file.readline())
        except OSError:
            return None
        return head if head["asked"] == self._asked else None

    def _locked(self, how: int) -> int:
        """The descriptor that holds the lock; negative where there is none to be had."""
        if self._folder is None:
            return -1
        try:
            descriptor = os.open(self._folder / "entries.lock", os.O_CREAT | os.O_RDWR, 0o600)
        except OSError:
            return -1
        try:
            fcntl.flock(descriptor, how)
        except OSError:
            os.close(descriptor)
            return -1
        return descriptor


def _checksum(arrays: Sequence[npt.NDArray[Any]]) -> int:
    crc = 0
    for array in arrays:
        crc = zlib.crc32(np.ascontiguousarray(array).data, crc)
    return crc
