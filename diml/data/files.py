"""The files that a name on the command line stands for: one, a directory's, or a pattern's.

Owns names, and the words where one name is not the same file everywhere; opens nothing. Invariant:
the order of the files depends on their names alone.
"""

from __future__ import annotations

import glob
import os
from collections.abc import Sequence
from pathlib import Path

from diml.errors import Misuse


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


def check_same_file(name: object, shapes: Sequence[tuple[int, int]]) -> None:
    """Raise Misuse where workers, of which these are rows and columns, see different files."""
    for worker, (rows, columns) in enumerate(shapes):
        if (rows, columns) != shapes[0]:
            raise Misuse(
                f"{name}: {rows} x {columns} to worker {worker}, {shapes[0][0]} x {shapes[0][1]} "
                "to worker 0: put the same file on all hosts"
            )
