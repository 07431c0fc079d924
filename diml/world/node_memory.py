"""The folder in a node's memory that a run under `diml run` keeps checkpoints in.

Owns its name, and the removal of folders that a killed run has left behind, and of what MPI leaves
in that memory when its launcher is killed. Must not know what is in them, nor import MPI.

Whoever uses a folder holds a shared lock on it (`hold`): the supervisor on its own host, and each
rank on its host. The kernel gives it back when they die, so a folder that can be locked for itself
alone belongs to nobody who is alive. On the other hosts of a job nobody holds it while a lost job
is started again; there it must also have been left alone for a while.
"""

from __future__ import annotations

import fcntl
import os
import shutil
import stat
import tempfile
import time
import uuid
from pathlib import Path

# Where a system has no such memory, a run's folder lies with the temporary files.
SHARED_MEMORY = Path("/dev/shm" if os.access("/dev/shm", os.W_OK) else tempfile.gettempdir())
_LEFT_ALONE_S = 3600.0
# Open MPI's files, one a process, by which those of a host talk; and MPICH's.
_SEGMENTS = ("sm_segment.", "mpich_shm_")
# In the folder on the supervisor's host: there a lock that is free is enough.
_SUPERVISED = ".supervised"


def new_folder(parent: Path = SHARED_MEMORY) -> Path:
    """A name for the folder of a run; it is not made."""
    return parent / f"diml-{os.geteuid()}-{uuid.uuid4().hex[:12]}"


def hold(folder: Path, *, supervisor: bool = False) -> int:
    """Make a folder if it is not there, and say that it is in use until this process ends.

    Returns the descriptor that holds the lock; closing it gives the lock back.
    """
    folder.mkdir(mode=0o700, exist_ok=True)
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    if supervisor:
        os.close(os.open(folder / _SUPERVISED, os.O_CREAT | os.O_WRONLY, 0o600))
    return descriptor


def sweep(parent: Path = SHARED_MEMORY) -> list[Path]:
    """Remove this user's folders on this host that belong to nobody alive; returns them."""
    gone = []
    for folder in sorted(parent.glob(f"diml-{os.geteuid()}-*")):
        try:
            status = folder.lstat()
            if status.st_uid != os.geteuid() or not stat.S_ISDIR(status.st_mode):
                continue
            descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
        except OSError:
            continue  # another run has just removed it
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            alone_s = time.time() - status.st_mtime
            if (folder / _SUPERVISED).exists() or alone_s > _LEFT_ALONE_S:
                shutil.rmtree(folder, ignore_errors=True)
                gone.append(folder)
        except OSError:
            continue  # in use
        finally:
            os.close(descriptor)
    return gone


def drop_segments(parent: Path = SHARED_MEMORY, maps: Path = Path("/proc/self/maps")) -> None:
    """Remove the files by which this process and its peers talk through MPI.

    For a job whose launcher is gone, which would have removed them: they are 16 MB a process.
    """
    for line in maps.read_text(errors="replace").splitlines():
        path = Path(line[line.find("/") :])
        if path.parent == parent and path.name.startswith(_SEGMENTS):
            path.unlink(missing_ok=True)
