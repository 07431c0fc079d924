"""How a spawned process knows what it is before MPI starts, and who ends it if all goes wrong.

Owns what must work while no Python code can run: inside MPI_Init, or while a collective call with
a dead leader hangs. Must not import MPI.

Invariant: a spawned process does not outlive its leader unless it has become a member, nor the
alarm that is set while it starts or joins.
"""

from __future__ import annotations

import faulthandler
import os
import signal
import subprocess
import sys

from diml.world.launch import host_identity

_OPTION = "diml_spawned"
_START_DEADLINE_S = 60
_AFTER_LIMIT_S = 12

# Ends process $1 when process $2 is gone; ends with process $1.
_GUARD = "while kill -0 $1 2>/dev/null; do kill -0 $2 2>/dev/null || kill -9 $1; sleep 0.2; done"


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


def start_alarm(deadline_s: float | None) -> None:
    """End this process with status 1 if the job has not begun by then; None takes it back.

    The last resort where a process was lost before MPI was up: the others hang inside MPI_Init,
    where no Python code can run, so all that can be said is where. It comes after the limit in
    `diml.world.start`, which says why.
    """
    if deadline_s is None:
        faulthandler.cancel_dump_traceback_later()
    else:
        faulthandler.dump_traceback_later(deadline_s + _AFTER_LIMIT_S, exit=True)


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
