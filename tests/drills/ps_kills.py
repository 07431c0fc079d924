"""Random SIGKILLs from outside on a running job: the next one once the repair is complete.

Owns finding the process behind a seat (the event log says who sits where) and the moment to kill.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tests.helpers.mpi import Running

REPAIR_WITHIN_S = 240.0
PROGRESS_WITHIN_S = 240.0
# Before the first step kernels may have to be compiled: in a fresh checkout the processes of a job
# take some 70 s of processor time for that, which they may have to share with others.
BEGINS_WITHIN_S = 400.0


class Killer:
    """Kills seats of one running job that writes its events to `events`."""

    def __init__(self, running: Running, events: Path, rng: random.Random) -> None:
        self._running, self._events, self._rng = running, events, rng
        self.killed: list[str] = []
        self.steps: list[int] = []

    def _lines(self) -> list[dict[str, Any]]:
        if not self._events.exists():
            return []
        text = self._events.read_text()
        # The last line may be on its way.
        return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]

    def _seats(self) -> dict[tuple[str, int], int]:
        """The pid at each seat of workers and servers, as of the newest event."""
        return {
            (line["role"], line["rank"]): line["pid"]
            for line in self._lines()
            if line["what"] in ("start", "repair") and line["role"] in ("worker", "server")
        }

    def _repairs(self) -> int:
        """Repairs that everyone living has come through, as the slowest has reported them."""
        done: dict[int, int] = {}
        for line in self._lines():
            if line["what"] in ("start", "repair"):
                done[line["pid"]] = line["epoch"]
        seats = set(self._seats().values())
        return min(epoch for pid, epoch in done.items() if pid in seats)

    def wait_until(self, reached: Callable[[], bool]) -> bool:
        """Wait for the moment of a kill; the failure carries the stacks of a job that stands.

        False if the job has come to its end before: this process was not let run in time.
        """
        within_s = PROGRESS_WITHIN_S if self.killed else BEGINS_WITHIN_S
        deadline = time.monotonic() + within_s
        while not reached():
            if self._running.poll() is not None:
                return False
            if time.monotonic() > deadline:
                raise AssertionError(f"no progress after {self.killed}: {self._report()}")
            time.sleep(0.005)
        return True

    def _report(self) -> str:
        return self._running.wait(timeout_s=0, allow_hang=True).report()

    def strike(self, roles: tuple[str, ...], done: Callable[[], int]) -> bool:
        """Kill one seat of each role at once, at a random moment; wait for the whole repair.

        `done` says how many steps of the job are done. False if the job came to its end instead.
        """
        time.sleep(self._rng.random() * 0.05)
        before, step = self._repairs(), done()
        seats = sorted(self._seats().items())
        for role in roles:
            seat, pid = self._rng.choice([entry for entry in seats if entry[0][0] == role])
            if not self._running.kill(pid):
                return False
            self.killed.append(f"{seat[0]} {seat[1]} at {step}")
            self.steps.append(step)
        deadline = time.monotonic() + REPAIR_WITHIN_S
        while True:
            # Asked first: a job may be repaired and go on to its end between two looks.
            ended = self._running.poll() is not None
            if self._repairs() > before:
                return True
            if ended:
                return False
            if time.monotonic() > deadline:
                raise AssertionError(f"no repair after {self.killed}: {self._report()}")
            time.sleep(0.02)
