"""The files that a name on the command line stands for: one, a directory's, or a pattern's.

Owns names, and the comparison of what workers on several hosts see behind one name. Must not know
what is in the files. Invariant: the order of the files depends on their names alone.
"""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from diml.errors import Misuse

# What is looked at of a file where workers compare theirs.
_BLOCK = 1 << 16
_BLOCKS_MAX = 256
_PACKERS = {
    b"\x1f\x8b": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"\x28\xb5\x2f\xfd": "zstd",
}


def files_of(name: str | os.PathLike[str]) -> list[str]:
    """The files behind a name, in the order of their names.

    Args:
        name: a file; a directory, for all its files but hidden ones; or a pattern with *, ? or
            [...], for what it matches. A name that exists is never taken for a pattern.

    Raises Misuse for a directory or a pattern without files. A file that does not exist is given
    as it is: who opens it says so.
    """
    path = Path(name)
    if path.is_dir():
        found = [str(one) for one in path.iterdir() if one.is_file() and one.name[0] != "."]
    elif not path.exists() and glob.has_magic(str(name)):
        found = [one for one in glob.glob(str(name)) if Path(one).is_file()]
    else:
        return [str(name)]
    if not found:
        raise Misuse(f"{name}: no file there")
    return sorted(found)


def check_unpacked(path: Path, head: bytes) -> None:
    """Raise Misuse for a file whose first bytes, `head`, are those of compressed data, which
    workers cannot share out among them."""
    for magic, name in _PACKERS.items():
        if head.startswith(magic):
            raise Misuse(f"{path}: compressed by {name}: unpack it first")


class Crew(Protocol):
    """Workers that read together (`diml.job.Job`)."""

    @property
    def size(self) -> int: ...
    def gather_once(self, array: NDArray[Any]) -> NDArray[Any] | None: ...


def check_same_files(crew: Crew, *names: str | os.PathLike[str] | None) -> None:
    """Raise Misuse, on all workers alike, unless all see the same files behind the names.

    Compared are lengths and contents: all of what is short, evenly spread parts of what is long,
    16 MB at most, so that it costs little beside the reading. Not compared where somebody has died
    by now, nor by a replacement. Collective. None stands for a name that is not given.
    """
    given = [os.fspath(name) for name in names if name is not None]
    if crew.size == 1 or not given:
        return
    seen = crew.gather_once(np.array([_look(given)]))
    if seen is not None and (seen != seen[0]).any():
        other = int(np.flatnonzero(seen != seen[0])[0])
        raise Misuse(
            f"{' '.join(given)}: worker {other} sees other files there than worker 0: put the "
            "same ones on all nodes"
        )


def _look(names: Sequence[str]) -> int:
    """A hash of what there is behind the names. What cannot be read counts as that: whoever reads
    it says so."""
    known = hashlib.blake2b(digest_size=7)
    try:
        paths = [path for name in names for path in files_of(name)]
        for path in filter(os.path.isfile, paths):
            with open(path, "rb", buffering=0) as file:
                length = os.fstat(file.fileno()).st_size
                known.update(b"%d " % length)
                blocks = max(2, min(-(-length // _BLOCK), _BLOCKS_MAX // len(paths)))
                for block in range(blocks):
                    file.seek(max(0, length - _BLOCK) * block // (blocks - 1))
                    known.update(file.read(_BLOCK))
    except (OSError, Misuse) as error:
        known.update(str(error).encode())
    return int.from_bytes(known.digest(), "little")
