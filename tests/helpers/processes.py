"""Finding, describing and ending the processes of one test run, from Linux's /proc.

A run's processes are known by an environment variable that its launcher was given: daemons and
ranks inherit it, also those that were re-parented or spawned later. Must not know what MPI is
beyond the variables by which a launcher names a rank. Invariant: a signal goes only to a process
whose environment carries the mark at that moment, so a reused pid is never hit.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

MARK = "DIML_TEST_RUN"
_WRITE_S = 20.0  # for the ranks that got SIGABRT to write their stacks
_RANK_NAMES = ("PMIX_RANK", "OMPI_COMM_WORLD_RANK", "PMI_RANK")
_SPACE_NAMES = ("PMIX_NAMESPACE", "OMPI_MCA_ess_base_jobid")


@dataclass(frozen=True)
class Process:
    """One living process of a run. `rank` is None for launchers, daemons and helpers of a rank."""

    pid: int
    parent: int
    state: str
    """Linux's letter: R running, S sleeping, T stopped, ..."""
    command: str
    rank: int | None
    namespace: str
    """The MPI job within the run: what mpirun started shares one, what was spawned has others."""

    def __str__(self) -> str:
        who = "no rank" if self.rank is None else f"rank {self.rank} of {self.namespace or '?'}"
        return f"pid {self.pid} ({who}, state {self.state}): {self.command}"


def find(mark: str) -> list[Process]:
    """Living processes whose environment carries `mark`, by pid; zombies do not count."""
    seen: dict[int, tuple[Process, tuple[int | None, str]]] = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        with contextlib.suppress(OSError):
            variables = _environment(entry)
            if variables.get(MARK) != mark:
                continue
            state, parent = _state_and_parent(entry)
            if state == "Z":
                continue
            rank = next((int(variables[k]) for k in _RANK_NAMES if k in variables), None)
            space = next((variables[k] for k in _SPACE_NAMES if k in variables), "")
            words = (entry / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
            command = b" ".join(words).decode(errors="replace")[:160]
            pid = int(entry.name)
            seen[pid] = Process(pid, parent, state, command, rank, space), (rank, space)
    # A process that a rank started inherits the rank's variables; only the parent is the rank.
    found = []
    for pid in sorted(seen):
        process, identity = seen[pid]
        parent_of = seen.get(process.parent)
        if parent_of is not None and parent_of[1] == identity and process.rank is not None:
            process = Process(pid, process.parent, process.state, process.command, None, "")
        found.append(process)
    return found


def send(mark: str, pid: int, signal_number: int) -> bool:
    """Signal `pid` if it still belongs to the run; False if it is gone."""
    entry = Path(f"/proc/{pid}")
    try:
        deadline = time.monotonic() + 0.1
        while not (variables := _environment(entry)) and time.monotonic() < deadline:
            time.sleep(0.005)  # between fork and exec a process has none for a moment
        if variables.get(MARK) != mark:
            return False
        os.kill(pid, signal_number)
    except OSError:
        return False
    return True


def end_all(mark: str, *, within_s: float = 60.0) -> list[Process]:
    """SIGKILL every process of the run until none is left; return those that would not go."""
    deadline = time.monotonic() + within_s
    while left := find(mark):
        for process in left:
            send(mark, process.pid, signal.SIGKILL)
        if time.monotonic() > deadline:
            break
        time.sleep(0.02)
    return left


def wait_until_gone(mark: str, *, within_s: float) -> list[Process]:
    """Wait for the run's processes to leave by themselves; return those that are still there."""
    deadline = time.monotonic() + within_s
    while (left := find(mark)) and time.monotonic() < deadline:
        time.sleep(0.02)
    return left


def python_stacks(mark: str) -> str:
    """The Python stack of every thread of every rank of the run, as text for a failure message.

    Read from outside by py-spy. A rank that py-spy may not read (no ptrace permission) gets
    SIGABRT, on which its fault handler writes its stacks to its own stderr: it dies of that.
    """
    parts, unread = [], []
    for process in find(mark):
        if not Path(process.command.partition(" ")[0]).name.startswith("python"):
            continue  # the launcher, its daemons, shells
        text = _spy(process.pid)
        if text is None:
            unread.append(process.pid)
            text = "py-spy could not read it: its stacks, if any, are in its stderr"
        parts.append(f"--- {process}\n{text}")
    if not parts:
        return "no rank is alive"
    # One right after the other: the launcher may end the others when one is gone.
    for number in (signal.SIGCONT, signal.SIGABRT):
        for pid in unread:
            send(mark, pid, number)
    deadline = time.monotonic() + _WRITE_S
    while {process.pid for process in find(mark)} & set(unread) and time.monotonic() < deadline:
        time.sleep(0.02)
    return "\n".join(parts)


def _spy(pid: int) -> str | None:
    """py-spy's dump of one process, or None if it cannot be had."""
    beside = Path(sys.executable).with_name("py-spy")
    program = str(beside) if beside.exists() else shutil.which("py-spy")
    if program is None:
        return None
    # Without pausing the process: a stopped one could not be paused, and a hung one does not move.
    command = [program, "dump", "--nonblocking", "--pid", str(pid)]
    for _ in range(3):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=40, check=False)
        except subprocess.TimeoutExpired:
            continue
        if done.returncode == 0 and done.stdout.strip():
            return done.stdout.rstrip()
    return None


def _environment(entry: Path) -> dict[str, str]:
    text = (entry / "environ").read_bytes().decode(errors="replace")
    return dict(item.split("=", 1) for item in text.split("\0") if "=" in item)


def _state_and_parent(entry: Path) -> tuple[str, int]:
    # The name in the second field may hold spaces and brackets; what follows it does not.
    fields = (entry / "stat").read_text(errors="replace").rpartition(")")[2].split()
    return fields[0], int(fields[1])
