"""What a job tells its supervisor: that it can be stopped, how far it is, that it is done.

Owns the words that are left in a folder of the supervisor's host, which the job knows by
DIML_SUPERVISED. A process on another host does not see the folder and writes nothing. Must not
import MPI.
"""

from __future__ import annotations

import atexit
import contextlib
import os
from pathlib import Path
from typing import Literal

FOLDER = "DIML_SUPERVISED"
ATTEMPT = "DIML_ATTEMPT"
MEMORY = "DIML_NODE_MEMORY"

Word = Literal["came", "went", "begun", "ready", "version", "left", "done"]
"""came: DiML was loaded. went: a program that loads it has come to its end. begun: `diml.init` was
called. ready: stop signals end in a checkpoint on a disk. version: the newest that is kept. left:
it ends in error, with this status. done: all is done."""


def say(word: Word, value: int = 0) -> None:
    """Leave a word for the supervisor, if there is one on this host."""
    folder = os.environ.get(FOLDER)
    if folder:
        # Renamed into place: several processes may say the same. The value is the target of a link,
        # for which there is room where the memory that checkpoints lie in is full.
        temporary = Path(folder) / f"{word}.{os.getpid()}"
        with contextlib.suppress(OSError):
            temporary.symlink_to(str(value))
            temporary.replace(Path(folder) / word)


def heard(folder: Path, word: Word) -> int | None:
    """The last value of a word, None if it was never said."""
    try:
        return int(os.readlink(folder / word))
    except (OSError, ValueError):
        return None


def say_to_the_end() -> None:
    """That this process is here, and at its end, unless it is killed, that it was."""
    say("came")
    atexit.register(say, "went")
