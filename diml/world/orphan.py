"""How a spawned process knows what it is before MPI starts, and who ends processes that MPI leaves.

Owns what must work while no Python code can run: inside MPI_Init, or while a collective call with
a dead leader hangs. Must not import MPI.

Invariants: a spawned process does not outlive its leader unless it has become a member, nor the
alarm that is set until it has a watchdog; the ranks that mpirun has started on a host do not wait
in MPI_Init for one that is lost.
"""

from __future__ import annotations

import contextlib
import ctypes
import faulthandler
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path

from diml.errors import PeerFailed
from diml.world.launch import host_identity, siblings
from diml.world.marker import FOLDER

_OPTION = "diml_spawned"
_START_DEADLINE_S = 60
_AFTER_LIMIT_S = 12
# mpirun starts its processes one after the other, on a busy machine slowly; one that is missing
# though a later one is there has died.
_STARTED_S, _MISSING_S = 20.0, 3.0

# Ends process $1 when process $2 is gone; ends with process $1.
_GUARD = "while kill -0 $1 2>/dev/null; do kill -0 $2 2>/dev/null || kill -9 $1; sleep 0.2; done"

# When one of the processes $3 is gone, or missing there (-): says $0, sends signal $1 to those
# from $6 on, and ends whom it did not end. Not at once: a process that has said what is wrong, and
# left, is not lost; by then this shell is not wanted any more. Without process $2, if any, it ends.
# After $4 looks ten times a second, which take longer, it does the same and says $5.
_START_WATCH = """
words=$0 signal=$1 mine=$2 watched=$3 looks=$4 late=$5; shift 5
while :; do
  [ -z "$mine" ] || kill -0 $mine 2>/dev/null || exit
  for p in $watched; do kill -0 $p 2>/dev/null || break 2; done; sleep 0.1
  looks=$((looks - 1)); [ $looks -gt 0 ] || { words=$late; break; }
done
sleep 0.5; echo "$words" >&2; kill -$signal "$@" 2>/dev/null; sleep 1; kill -9 "$@" 2>/dev/null
"""
# UCX takes the signal for its own otherwise.
_UCX_SIGNAL = "UCX_DEBUG_SIGNO"
_LOCAL_RANK, _JOB = "OMPI_COMM_WORLD_LOCAL_RANK", "PMIX_NAMESPACE"


def _working_folder() -> str:
    with contextlib.suppress(FileNotFoundError):
        return os.getcwd()
    return "/"


# Where this process was when the job began. Its command line is to be read from there, also by
# those that are started later: the program may have gone elsewhere since.
BEGAN_IN = _working_folder()


def spawn_arguments() -> list[str]:
    """The interpreter's arguments of a process that this one, the leader, spawns: its own, behind
    an option that says what it is, and whose."""
    own = sys.orig_argv[2 if was_spawned() else 1 :]
    return [f"-X{_OPTION}={os.getpid()}@{host_identity()}", *own]


def spawned_here() -> frozenset[int]:
    """The pids of the processes on this host that this one has spawned and that are alive."""
    mine, found = f"-X{_OPTION}={os.getpid()}@".encode(), set()
    for pid in siblings():
        with contextlib.suppress(OSError):
            if mine in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.add(pid)
    return frozenset(found)


def was_spawned() -> bool:
    """Whether a leader of a running job started this process, to fill an empty seat."""
    return _OPTION in sys._xoptions


def arm_alarm(seconds: int) -> None:
    """Let the system end this process after so long; 0 takes it back."""
    signal.signal(signal.SIGALRM, signal.SIG_DFL)
    signal.alarm(seconds)


def _all_ranks(count: int, env: Mapping[str, str]) -> dict[int, int]:
    """By rank on this host the pids of what mpirun starts here; fewer if one has died already."""
    begun_s = time.monotonic()
    while True:
        found = {
            int(theirs[_LOCAL_RANK]): pid
            for pid, theirs in siblings().items()
            if _LOCAL_RANK in theirs and theirs.get(_JOB) == env.get(_JOB)
        }
        died = len(found) <= max(found, default=-1)
        waited_s = time.monotonic() - begun_s
        if len(found) >= count or waited_s > (_MISSING_S if died else _STARTED_S):
            return found
        time.sleep(0.05)


class StartGuard:
    """Ends the job if a process of this host is lost before MPI is up.

    The others would hang inside MPI_Init, where no Python code can run. So a shell, a child of the
    first rank on each host, watches all others that mpirun has started there, and one of the
    second rank watches the first. It says why, and sends all a signal at which they leave with an
    error. Across hosts the last resort is a limit.

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
        os.environ.setdefault(_UCX_SIGNAL, "0")
        if env.get(_LOCAL_RANK) in ("0", "1"):
            first = env[_LOCAL_RANK] == "0"
            pids = _all_ranks(int(local), env)
            watched = range(1, int(local)) if first else (0,)
            those = " ".join(str(pids.get(rank, "-")) for rank in watched)
            words = "diml: a process was lost before the job had begun"
            late = (
                f"diml: waited {deadline_s:g} s for all processes to come to diml.init; giving up"
            )
            # The second one's only speaks if the first one's has not.
            looks = math.ceil(10 * (deadline_s + (0 if first else _AFTER_LIMIT_S / 2)))
            arguments = [words, str(int(self._signal)), "" if first else str(os.getpid()), those]
            arguments += [str(looks), late, *map(str, pids.values())]
            command = ["/bin/sh", "-c", _START_WATCH, *arguments]
            self._watch = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def __enter__(self) -> None:
        """Watching begins when this is made."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        faulthandler.cancel_dump_traceback_later()
        if self._watch is not None:
            self._watch.kill()
            self._watch.wait()
        if self._libc is not None:
            self._libc.signal(self._signal, ctypes.c_void_p(self._before))
        if _of_mpi_init(error):
            raise PeerFailed(f"the job could not begin: {error}") from None


def _of_mpi_init(error: BaseException | None) -> bool:
    """Whether mpi4py says by this error that MPI_Init has failed."""
    return isinstance(error, RuntimeError) and "MPI_Init" in str(error)


class Guard:
    """Ends this process if its leader dies before it is a member; for leaders on this host.

    A block around the import of MPI: where MPI_Init fails, since the leader has died meanwhile, the
    process leaves without a word, and with a status that is none for mpirun to take for the job's.
    """

    def __init__(self) -> None:
        arm_alarm(_START_DEADLINE_S)
        leader, _, host = str(sys._xoptions[_OPTION]).partition("@")
        self._process: subprocess.Popen[bytes] | None = None
        if host == host_identity():
            command = ["/bin/sh", "-c", _GUARD, "guard", str(os.getpid()), leader]
            self._process = subprocess.Popen(command, stdin=subprocess.DEVNULL)

    def __enter__(self) -> None:
        """Watching begins when this is made."""

    def __exit__(self, kind: object, error: BaseException | None, trace: object) -> None:
        if _of_mpi_init(error):
            os._exit(0)

    def dismiss(self) -> None:
        """This process is a member now, with a watchdog: the alarm is taken back, and its leader's
        death is the world's business."""
        arm_alarm(0)
        if self._process is not None:
            self._process.kill()
            self._process.wait()
            self._process = None
