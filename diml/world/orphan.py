"""How a spawned process knows what it is before MPI starts, and who ends it if all goes wrong.

Owns what must work while no Python code can run: inside MPI_Init, or while a collective call with
a dead leader hangs. Must not import MPI.

Invariant: a spawned process does not outlive its leader unless it has become a member, nor the
alarm that is set while it starts or joins.
"""

from __future__ import annotations

import ctypes
import faulthandler
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping

from diml.world.launch import host_identity, sibling_ranks
from diml.world.marker import FOLDER

_OPTION = "diml_spawned"
_START_DEADLINE_S = 60
_AFTER_LIMIT_S = 12
_STARTED_S = 3.0  # mpirun starts its processes one after the other

# Ends process $1 when process $2 is gone; ends with process $1.
_GUARD = "while kill -0 $1 2>/dev/null; do kill -0 $2 2>/dev/null || kill -9 $1; sleep 0.2; done"

# Says $0 and sends signal $1 to the processes from $3 on when one of them is gone, or if they are
# not $2 in number.
_START_WATCH = """
signal=$1 n=$2; shift 2
[ $# = $n ] && while :; do for p; do kill -0 $p 2>/dev/null || break 2; done; sleep 0.1; done
echo "$0" >&2; kill -$signal "$@" 2>/dev/null
"""


def spawn_option() -> str:
    """The interpreter's option by which this process, the leader, marks one that it spawns."""
    return f"-X{_OPTION}={os.getpid()}@{host_identity()}"


def was_spawned() -> bool:
    """Whether a leader of a running job started this process, to fill an empty seat."""
    return _OPTION in sys._xoptions


def arm_alarm(seconds: int) -> None:
    """Let the system end this process after so long; 0 takes it back."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


def _all_ranks(count: int) -> list[int]:
    """The pids of the ranks that mpirun starts on this host; fewer if one has died already."""
    until = time.monotonic() + _STARTED_S
    while len(pids := sibling_ranks()) < count and time.monotonic() < until:
        time.sleep(0.05)
    return pids


class StartGuard:
    """Ends the job if a process of this host is lost before MPI is up.

    The others would hang inside MPI_Init, where no Python code can run. So a shell, a child of the
    first rank on each host, watches all that mpirun has started there; it says why, and sends them
    a signal at which they leave with an error. Across hosts the last resort is a limit.

    A block around the import of MPI, to be left before the first call of it: no rank can be through
    with the start, and leave, before all watchers are gone.
    """

    def __init__(self, deadline_s: float, env: Mapping[str, str]) -> None:
        self._watch: subprocess.Popen[bytes] | None = None
        faulthandler.dump_traceback_later(deadline_s + _AFTER_LIMIT_S, exit=True)
        local = env.get("OMPI_COMM_WORLD_LOCAL_SIZE", "")
        self._libc = ctypes.CDLL(None) if local.isdigit() and int(local) > 1 else None
        if self._libc is None:
            return
        # As C's handler, _exit gets the signal's number for its status: that of SIGHUP is 1, and
        # that of SIGUSR2 one at which `diml run` starts the job again.
        self._signal = signal.SIGUSR2 if env.get(FOLDER) else signal.SIGHUP
        self._libc.signal.restype = ctypes.c_void_p
        leave = ctypes.cast(self._libc._exit, ctypes.c_void_p)
        self._before = self._libc.signal(self._signal, leave)
        if env.get("OMPI_COMM_WORLD_LOCAL_RANK") == "0":
            words = "diml: a process was lost before the job had begun"
            pids = _all_ranks(int(local))
            watched = [str(int(self._signal)), local, *map(str, pids)]
            command = ["/bin/sh", "-c", _START_WATCH, words, *watched]
            self._watch = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def __enter__(self) -> None:
        """Watching begins when this is made."""

    def __exit__(self, *error: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._watch is not None:
            self._watch.kill()
            self._watch.wait()
        if self._libc is not None:
            self._libc.signal(self._signal, ctypes.c_void_p(self._before))


class Guard:
    """Ends this process if its leader dies before it is a member; for leaders on this host."""

    def __init__(self) -> None:
        arm_alarm(_START_DEADLINE_S)
        leader, _, host = str(sys._xoptions[_OPTION]).partition("@")
        self._process: subprocess.Popen[bytes] | None = None
        if host == host_identity():
            command = ["/bin/sh", "-c", _GUARD, "guard", str(os.getpid()), leader]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def dismiss(self) -> None:
        """This process is a member now: its leader's death is the world's business."""
        arm_alarm(0)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
