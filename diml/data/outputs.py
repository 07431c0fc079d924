"""Where a job or a command may write: looked at before any work is done.

Owns the refusals: no folder, a directory or a device in a file's place, a file that is read as
well, one name for two outputs. Opens nothing. Must not know what is written.
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path

from diml.data.files import files_of
from diml.errors import Misuse

Name = str | os.PathLike[str] | None

_LINKS_MOST = 40  # as the kernel follows


def special(name: str | os.PathLike[str]) -> bool:
    """Whether there is something that is no ordinary file: a directory, a device, a pipe, or a
    name of an open file, such as /dev/stdout: a rename would put the name itself away."""
    path = os.path.abspath(name)
    for _ in range(_LINKS_MOST):
        if not os.path.islink(path):
            break
        path = os.path.join(os.path.dirname(path), os.readlink(path))
        if path.startswith("/proc/"):
            return True
    return os.path.exists(name) and not os.path.isfile(name)


def check_writable(path: Path | None) -> None:
    """Raises Misuse where no file can be written at `path`."""
    if path is None:
        return
    folder = path.parent
    if not folder.is_dir():
        raise Misuse(f"{path}: there is no directory {folder}")
    if special(path) or not os.access(folder, os.W_OK):
        raise Misuse(f"{path}: cannot be written")


def check_apart(writes: Iterable[Name], reads: Iterable[Name], grows: Iterable[Name] = ()) -> None:
    """Raises Misuse where an output would take the place of an input, or of another output.

    Args:
        writes: files that will appear by rename, which would put a device or a pipe away: those
            are refused as well. None for one that is not asked for.
        reads: files, directories or patterns, as `files_of` takes them; None as above.
        grows: files that are written to as they are, a device maybe; None as above.
    """
    read = {os.path.realpath(one) for name in reads if name for one in files_of(name)}
    taken: set[str] = set()
    for name in writes:
        if name is None:
            continue
        if special(name):
            raise Misuse(f"{name}: cannot write it: it is no ordinary file")
        path = os.path.realpath(name)
        if path in read:
            raise Misuse(f"{name}: it would be written over, and it is read")
        if path in taken:
            raise Misuse(f"{name}: two outputs would be written there")
        taken.add(path)
    for name in grows:
        if name is not None and os.path.realpath(name) in taken:
            raise Misuse(f"{name}: two outputs would be written there")
