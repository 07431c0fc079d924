"""A running job's claim on its checkpoint directory, so that two jobs do not write over each other.

Owns a file in the directory that says whose it is, and the locks on it. Must not know what else is
in the directory, nor import MPI.

Each process of a job holds a shared lock that the system gives back when it dies, however it dies:
a directory whose file nobody has locked is free, whatever the file says. Who finds it free locks it
for itself alone, writes the job's name, and keeps a shared lock; where the name is its own job's a
process only takes a shared one. On the nodes' own disks each node's directory is claimed for
itself. The locks are POSIX's, which network file systems know; where there are none, nothing is
claimed.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import time
from pathlib import Path

from diml.errors import Misuse

_NAME = ".claim"
_MOST = 1000
# Processes of a job that was killed just now may be about to leave.
_PATIENCE_S = 10.0
_AGAIN_S = 0.05


def make_private(directory: Path) -> None:
    """Make a directory, and what is missing above it, for this user alone. Raises OSError."""
    # One by one: `parents=True` would leave those above open to all.
    missing = [path for path in (directory, *directory.parents) if not path.exists()]
    for path in reversed(missing):
        path.mkdir(mode=0o700, exist_ok=True)


class Claim:
    """A directory held for a job as long as this process lives, or until `release`."""

    def __init__(self, directory: Path, job: str) -> None:
        """Wait a little for whoever is about to leave.

        Args:
            directory: made if it is not there. Where it cannot be claimed it is not: what is wrong
                with it is said by those who write there.
            job: the same on all processes of the job, and different from all other jobs'.

        Raises Misuse where another job holds it.
        """
        until = time.monotonic() + _PATIENCE_S
        self._file = -1
        try:
            make_private(directory)
            self._file = os.open(directory / _NAME, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
            while not _held(self._file, job):
                fcntl.lockf(self._file, fcntl.LOCK_UN)
                if time.monotonic() > until:
                    raise Misuse(
                        f"{directory}: another job keeps its checkpoints there now "
                        f"({_said(self._file)[1]}): wait for its end, or use another directory"
                    )
                # Not in step with others of this job, who stand in each other's way for a moment.
                time.sleep(_AGAIN_S * random.random())
        except (Misuse, OSError) as error:
            self.release()
            if isinstance(error, Misuse):
                raise

    def release(self) -> None:
        """Give it back: the job is over, though its program may go on."""
        if self._file >= 0:
            os.close(self._file)
            self._file = -1


def _held(file: int, job: str) -> bool:
    """Take a shared lock if the directory is, or becomes, this job's. Raises OSError where there
    are no locks."""
    try:
        fcntl.lockf(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        if _said(file)[0] == job:
            return True
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EACCES, errno.EAGAIN):
            return False
        raise
    os.ftruncate(file, 0)
    os.pwrite(file, f"{job}\nprocess {os.getpid()} on {os.uname().nodename}".encode(), 0)
    fcntl.lockf(file, fcntl.LOCK_SH)
    return True


def _said(file: int) -> tuple[str, str]:
    """The job that has written its name last, and which process of it did."""
    job, _, owner = os.pread(file, _MOST, 0).decode(errors="replace").partition("\n")
    return job, owner
