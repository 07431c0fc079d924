"""Nothing waits for ever: deadlines on waits that MPI cannot interrupt, and the end of the frozen.

Owns one daemon thread a process. Must not know what is waited for. It counts its own ticks
instead of reading a clock, so that a job that was suspended as a whole is not taken for a dead
one when it goes on.

Invariants: a process stopped (state T) for longer than the deadline is killed by its neighbours
on the host, which turns a freeze into a death that MPI reports; a limit that is outlived ends
this process with one line that says what it waited for.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
from collections.abc import Iterator
from dataclasses import dataclass

_TICK_S = 0.25


@dataclass
class _Limit:
    ticks_left: int
    seconds: float
    what: str
    abort_status: int | None


class Watchdog:
    """Watches this process's waits and the processes beside it on the host."""

    def __init__(self, frozen_deadline_s: float, neighbours: tuple[int, ...]) -> None:
        self._limits: list[_Limit] = []
        self._frozen_ticks_max = max(1, int(frozen_deadline_s / _TICK_S))
        self._neighbours = {pid: (_process_state(pid)[1], 0) for pid in neighbours}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="diml-watchdog", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        """No more watching: the job is over."""
        self._over.set()

    @contextlib.contextmanager
    def limit(self, seconds: float, what: str, abort_status: int | None = None) -> Iterator[None]:
        """End this process if the block takes longer than `seconds`.

        With `abort_status` all processes of the job end with it (MPI_Abort).
        """
        entry = _Limit(int(seconds / _TICK_S) + 1, seconds, what, abort_status)
        self._limits.append(entry)
        try:
            yield
        finally:
            self._limits.remove(entry)

    def _run(self) -> None:
        while not self._over.wait(_TICK_S):
            for entry in list(self._limits):
                entry.ticks_left -= 1
                if entry.ticks_left <= 0:
                    self._give_up(entry)
            self._fence()

    def _give_up(self, entry: _Limit) -> None:
        if entry.abort_status is None:
            text = f"diml: waited {entry.seconds:g} s for {entry.what}; giving up\n"
            sys.stderr.write(text)
            sys.stderr.flush()
        from diml.world.mpi import abort

        abort(entry.abort_status if entry.abort_status is not None else 1)
        os._exit(1)

    def _fence(self) -> None:
        for pid, (birth, ticks) in list(self._neighbours.items()):
            state, now_birth = _process_state(pid)
            if now_birth != birth:
                del self._neighbours[pid]
            elif state != "T":
                self._neighbours[pid] = (birth, 0)
            elif ticks + 1 < self._frozen_ticks_max:
                self._neighbours[pid] = (birth, ticks + 1)
            else:
                del self._neighbours[pid]
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.kill(pid, signal.SIGKILL)


def _process_state(pid: int) -> tuple[str, str]:
    """State letter and start time of a process in /proc; empty if there is no such process.

    The start time tells a process from a later one that was given the same number.
    """
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            words = file.read().rpartition(b")")[2].decode().split()
        return words[0], words[19]
    except (OSError, IndexError):
        return "", ""
