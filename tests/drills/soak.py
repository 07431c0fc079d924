"""Random drills: real jobs, whose processes are killed from outside at random moments.

`python -m tests.drills.soak --runs 200` draws so many cases of `soak_cases` (which job, with which
arguments, on how many ranks), kills or stops some of the processes of each between 5 % and 95 % of
its way, some at the same time and some while others are being replaced, and compares every file
that it has written, byte by byte, with those of the run without deaths. What is wrong or hangs is
printed with its seed; `--seed N` repeats its case and its kills (as closely as time lets), `--job`
takes one job only.

How far a job is it tells by its processor time, which other work on the machine does not stretch.
No more is killed at once than the README says a job outlives.
"""

from __future__ import annotations

import argparse
import itertools
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from diml.events import read_events
from tests.drills.soak_cases import JOBS, Case, contents, drawn, write_data
from tests.helpers.mpi import Finished, Running, start_mpi

TIMEOUT_S = 150.0
STRIKES_MAX = 3
_SEATED = ("start", "join", "repair")


@dataclass
class Calm:
    """The run without deaths: what it wrote, and the processor time (seconds) of its way."""

    found: dict[str, object]
    seconds: float


@dataclass
class Storm:
    """What is to happen to a run: drawn from its seed.

    Attributes:
        moments: of each strike, as a part of the way.
        spares: processes that wait.
    """

    rng: random.Random
    moments: list[float]
    spares: int
    killed: list[str] = field(default_factory=list)


class Watched:
    """A running job, as far as it can be seen from outside."""

    def __init__(self, running: Running, events: Path, size: int) -> None:
        self.running, self._path, self._size = running, events, size
        self._begun: dict[int, float] = {}
        self._gone: set[int] = set()
        self._missed: set[int] = set()  # of them those whose death is repaired: no spares

    def events(self) -> list[dict[str, Any]]:
        return list(read_events(self._path)) if self._path.exists() else []

    def ended(self) -> bool:
        return self.running.poll() is not None

    def wait(self, reached: Callable[[], bool], within_s: float) -> bool:
        """Whether that came while the job ran; fails if the job hangs instead."""
        deadline = time.monotonic() + within_s
        while not reached():
            if self.ended():
                return False
            if time.monotonic() > deadline:
                raise AssertionError(self.running.wait(timeout_s=0, allow_hang=True).report())
            time.sleep(0.01)
        return True

    def all_have_started(self) -> bool:
        return len([event for event in self.events() if event["what"] == "start"]) == self._size

    def seats(self) -> dict[int, tuple[str, int]]:
        """pid -> (role, rank) of those who are in the world, as of the newest repair."""
        told = [event for event in self.events() if event["what"] in _SEATED]
        seats = {event["pid"]: (event["role"], event["rank"]) for event in told}
        return {pid: seat for pid, seat in seats.items() if pid not in self._gone}

    def leaving(self) -> bool:
        return "leave" in {event["what"] for event in self.events()}

    def whole(self) -> bool:
        """Whether all living have come through the repairs of all deaths, or the job ends."""
        told = [event for event in self.events() if event["what"] in _SEATED]
        lost = {uid for event in told for uid in event.get("lost", ())}
        missed = {event["uid"] for event in told if event["pid"] in self._missed}
        # A process that was started for a seat is there once it has joined, not before.
        through = {e["pid"]: e["epoch"] for e in told if e["what"] != "start" or e["epoch"] == 0}
        newest = max(through.values(), default=0)
        return self.leaving() or (
            missed <= lost and all(through.get(pid) == newest for pid in self.seats())
        )

    def set_out(self) -> None:
        """Measure the way from here."""
        self._begun = {pid: _processor_s(pid) for pid in self.seats()}

    def way_s(self) -> float:
        """Processor seconds of the one who has come furthest."""
        return max((_processor_s(pid) - begun for pid, begun in self._begun.items()), default=0.0)

    def has_gone(self, seconds: float) -> bool:
        """Whether that much of the way is behind, or the job ends."""
        return self.leaving() or self.way_s() >= seconds

    def strike(self, pids: Iterable[int], signal_number: int, pause_s: float) -> list[str]:
        """Signal them one after the other; who was there to be hit."""
        hit = []
        seats = self.seats()
        for pid in pids:
            if self.running.kill(pid, signal_number):
                self._gone.add(pid)
                self._missed |= {pid} if seats[pid][0] != "spare" else set()
                hit.append(" ".join(map(str, seats[pid])))
            time.sleep(pause_s)
        return hit


def _processor_s(pid: int) -> float:
    """Processor time of a process's first thread; 0 if it is gone."""
    try:
        return int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) / 1e9
    except (OSError, IndexError):
        return 0.0


class Soak:
    """Runs and their inputs below one folder."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._calm: dict[Case, Calm] = {}
        self._numbers = itertools.count()
        write_data(folder)

    def run(self, seed: int, job: str | None = None) -> tuple[str, int]:
        """One case with its kills. Returns what was done, and how many were hit; AssertionError:
        it went wrong."""
        rng = random.Random(seed)
        case = drawn(job or rng.choice(JOBS), rng)
        strikes = rng.randint(1, STRIKES_MAX)
        # A single server's rows have their copy on a spare, as long as there is one.
        spares = strikes * 2 if case.servers == 1 else rng.choice((0, 1, 3, 4))
        moments = sorted(rng.uniform(0.05, 0.95) for _ in range(strikes))
        calm = self._calm.get(case)
        if calm is None:
            calm = self._calm[case] = self._undisturbed(case)
        # Should a run be over before it was hit, it is done again and hit earlier.
        for _ in range(5):
            storm = Storm(random.Random(seed), moments, spares)
            found = self._disturbed(case, storm, calm)
            if storm.killed:
                break
            moments = [moment / 2 for moment in moments]
        told = f"{case.job}, {case.workers}+{case.servers}+{spares} processes, " + "; ".join(
            storm.killed
        )
        assert storm.killed, f"the job was over before it was hit: {told}"
        wrong = [name for name in calm.found if calm.found[name] != found.get(name)]
        words = " ".join(case.words)
        assert not wrong, f"OTHER BITS in {wrong} after {told}\n{words}"
        return told, sum(" and " in strike for strike in storm.killed) + len(storm.killed)

    def _start(self, case: Case, spares: int) -> tuple[Running, Path]:
        folder = self._folder / str(next(self._numbers))
        folder.mkdir()
        places = {"FOLDER": str(folder), "DATA": str(self._folder)}
        words = list(case.words)
        for mark, place in places.items():
            words = [word.replace(mark, place) for word in words]
        env = {
            "DIML_EVENTS": str(folder / "events"),
            "DIML_SERVERS": str(case.servers),
            "DIML_SPARES": str(spares),
            "DIML_REPLICAS": "3",
            "DIML_FROZEN_DEADLINE": "1",
            "DIML_QUIET": "1",
        }
        size = case.workers + case.servers + spares
        return start_mpi(size, case.program(), args=words, env=env), folder

    def _undisturbed(self, case: Case) -> Calm:
        running, folder = self._start(case, 0)
        with running:
            job = Watched(running, folder / "events", case.workers + case.servers)
            job.wait(job.all_have_started, TIMEOUT_S)
            job.set_out()
            seconds = 0.0
            while not job.ended() and not job.leaving():
                seconds = max(seconds, job.way_s())
                time.sleep(0.01)
            running.wait(timeout_s=TIMEOUT_S).expect(0)
        return Calm(contents(case, folder), seconds)

    def _disturbed(self, case: Case, storm: Storm, calm: Calm) -> dict[str, object]:
        running, folder = self._start(case, storm.spares)
        with running:
            job = Watched(running, folder / "events", case.workers + case.servers + storm.spares)
            if job.wait(job.all_have_started, TIMEOUT_S):
                self._torment(job, case, storm, calm)
            finished = running.wait(timeout_s=TIMEOUT_S, allow_hang=True)
        _check(finished, storm)
        return contents(case, folder)

    def _torment(self, job: Watched, case: Case, storm: Storm, calm: Calm) -> None:
        before = 0.0
        for moment in storm.moments:
            job.set_out()
            aim, before = (moment - before) * calm.seconds, moment
            if not job.wait(partial(job.has_gone, aim), TIMEOUT_S) or job.leaving():
                return
            pids, number = _targets(job, case, storm.rng), signal.SIGKILL
            if storm.rng.random() < 0.15:
                pids, number = pids[:1], signal.SIGSTOP
            pause_s = storm.rng.choice((0.0, 0.0, storm.rng.uniform(0.0, 0.06)))
            if hit := job.strike(pids, number, pause_s):
                name = signal.Signals(number).name[3:].lower()
                storm.killed.append(f"{name} {' and '.join(hit)} at {moment:.0%}")
            if not job.wait(job.whole, TIMEOUT_S):
                return


def _targets(job: Watched, case: Case, rng: random.Random) -> list[int]:
    """Whom to hit at once: one, or several that the job can lose at once."""
    seats = sorted(job.seats().items(), key=lambda item: item[1])
    by_role = {
        role: [pid for pid, seat in seats if seat[0] == role]
        for role in ("worker", "server", "spare")
    }
    workers, servers, spares = by_role.values()
    kinds = ["worker"] * 4 + ["server"] * 2 * bool(servers) + ["spare"] * bool(spares)
    kinds += ["several"] * 2 * (case.workers > 2) + ["both"] * 2 * bool(servers)
    kinds += ["its spare"] * bool(spares and not servers)
    kind = rng.choice(kinds)
    if kind == "several":
        return rng.sample(workers, rng.randint(2, case.workers - 1))
    if kind in ("both", "its spare"):
        return [rng.choice(workers), rng.choice(servers or spares)]
    return [rng.choice(by_role[kind])]


def _check(finished: Finished, storm: Storm) -> None:
    told = f"{storm.spares} spares, {'; '.join(storm.killed)}\n{finished.report()}"
    assert not finished.hung, f"HUNG: {told}"
    assert finished.returncode == 0, f"STATUS {finished.returncode}: {told}"
    assert not finished.leftovers, f"LEFT BEHIND: {told}"
    for word in ("Traceback", "Error:", "Segmentation", "free():"):
        assert word not in finished.stderr + finished.stdout, f"SAID {word}: {told}"


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m tests.drills.soak", description=__doc__)
    parser.add_argument("--runs", type=int, default=20)
    parser.add_argument("--first", type=int, default=0, help="seed of the first run")
    parser.add_argument("--seconds", type=float, default=1e9, help="begin no run after that")
    parser.add_argument("--seed", type=int, help="repeat one run")
    parser.add_argument("--job", choices=JOBS, help="this one only")
    arguments = parser.parse_args()
    seeds = range(arguments.first, arguments.first + arguments.runs)
    if arguments.seed is not None:
        seeds = range(arguments.seed, arguments.seed + 1)
    runs = failures = kills = 0
    started = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="diml-soak-") as folder:
        soak = Soak(Path(folder))
        for seed in seeds:
            begun = time.monotonic()
            if begun - started > arguments.seconds:
                break
            runs += 1
            try:
                told, killed = soak.run(seed, arguments.job)
            except AssertionError as error:
                failures += 1
                print(f"FAILED seed {seed}: {error}", flush=True)
                continue
            kills += killed
            print(f"seed {seed}: {told}: right, {time.monotonic() - begun:.1f} s", flush=True)
    print(f"{runs} runs, {kills} processes hit in those that were right, {failures} failed")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
