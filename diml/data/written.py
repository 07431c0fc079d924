"""Files that appear whole or not at all, and what is said where the disk refuses them.

Owns the name beside a file's place, the renaming, and the room that HDF5 needs. Must not know what
is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from diml.errors import Misuse

# What HDF5 itself writes between two blocks of data: headers and indices.
_HDF5_OWN_BYTES = 1 << 16


@contextmanager
def whole(*paths: Path) -> Iterator[list[Path]]:
    """Names to write to beside the places of files, which get their own names, one after the other,
    once the block is done.

    Raises Misuse, naming the files, where they cannot be written; then nothing is left beside them.
    """
    beside = [path.with_name(path.name + ".part") for path in paths]
    try:
        yield beside
        for made, path in zip(beside, paths, strict=True):
            os.replace(made, path)
    except OSError as error:
        raise refused(" and ".join(map(str, paths)), error) from None
    finally:
        for made in beside:
            with suppress(OSError):
                made.unlink()


def refused(name: str | Path, error: OSError) -> Misuse:
    """What to raise where the system does not let a file be written."""
    return Misuse(f"{name}: cannot write it: {error.strerror or error}")


class Hdf5:
    """A new HDF5 file in a `with` block: `file` is h5py's, `make_room` comes before what is put in.

    HDF5 that is refused a write does not recover, and may take the process down with it. So the
    room on the disk is taken first, by a call that can be refused.
    """

    def __init__(self, path: Path) -> None:
        import h5py  # not at the top: it costs every rank of every job a third of a second

        self._path = path
        self.file: Any = h5py.File(path, "w", locking=False)

    def make_room(self, nbytes: int) -> None:
        """Take room for so many bytes more. Raises OSError where the disk has not got it."""
        size = self.file.id.get_filesize() + nbytes + _HDF5_OWN_BYTES
        os.posix_fallocate(self.file.id.get_vfd_handle(), 0, size)

    def __enter__(self) -> Hdf5:
        return self

    def __exit__(self, kind: object, error: object, trace: object) -> None:
        if kind is not None:
            # What HDF5 still holds goes nowhere.
            memory = os.memfd_create("refused")
            os.dup2(memory, self.file.id.get_vfd_handle())
            os.close(memory)
        self.file.flush()
        size = self.file.id.get_filesize()
        self.file.close()
        if kind is None:
            os.truncate(self._path, size)
