"""Which checkpoint a running job has kept by now: what a test waits for before it kills the job.

Owns nothing but this look from outside, by the readers that a resumed job uses. Programs under test
use it as well, to hold still until they can be killed without losing everything.
"""

from __future__ import annotations

import time
from pathlib import Path

from diml.checkpoint.disk import Disk
from diml.checkpoint.durable import Shelf, choose
from diml.checkpoint.slots import Slots

_DEADLINE_S = 240.0


def newest(directory: Path, *, in_memory: bool = False) -> int:
    """The newest version of which all pieces are there; 0 if there is none."""
    medium = (Slots if in_memory else Disk)(directory, "")
    try:
        looked = [medium.found(path) for path in medium.listed()]
    except OSError:
        return 0  # not there yet, or an old version was being removed
    shelf = Shelf(0, (0,), [found for found in looked if found is not None])
    candidates, _ = choose([shelf], None, None)
    return candidates[0].version if candidates else 0


def wait_for(version: int, directory: Path) -> None:
    """Hold the calling program still until this version, or a newer one, is on the disk."""
    deadline = time.monotonic() + _DEADLINE_S
    while newest(directory) < version:
        assert time.monotonic() < deadline, f"no version {version} in {directory}"
        time.sleep(0.01)
