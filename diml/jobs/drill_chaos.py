"""Chaos: a job of the user's own, its processes killed at random times.

    python -m diml.jobs.drill --chaos 5 --workers 4 --spares 1 -- diml.jobs.mf --generate

Owns whom it kills and when, and the account of what that cost. The job is started by `diml run`,
which starts it again if it is lost. Starts no MPI in its own process. Invariant: a signal goes only
to a process whose environment carries this job's mark at that moment, on this host; never before
all processes have started (MPI does not survive a death in its start).
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
import uuid
from argparse import Namespace
from collections.abc import Container, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any

from diml.errors import Misuse
from diml.events import read_events
from diml.report.run import Death, run_of, span
from diml.world.launch import singleton

_MARK = "DIML_CHAOS"
_POLL_S = 0.02
_TOLD = (signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)
# In a job that is over, nobody who waits to leave is to be killed; it could not be told apart.
_SEATED = ("start", "join", "repair")


@dataclass(frozen=True, slots=True)
class Kill:
    """Who was killed: run, process, when (seconds since 1970)."""

    run: str
    uid: int
    time: float


def living(events: Sequence[Mapping[str, Any]]) -> dict[int, tuple[str, int]]:
    """The processes of the newest run that may be killed, pid -> (run, uid); none while some are
    still starting, and none of a run whose processes have begun to leave."""
    if not events:
        return {}
    run = events[-1]["run"]
    own = [event for event in events if event["run"] == run]
    size = max((event["size"] for event in own if event["what"] == "start"), default=0)
    started = {event["uid"] for event in own if event["what"] == "start"}
    if len(started) < size or any(event["what"] == "leave" for event in own):
        return {}
    lost = {uid for event in own if event["what"] == "repair" for uid in event["lost"]}
    return {
        event["pid"]: (run, event["uid"])
        for event in own
        if event["what"] in _SEATED and event["uid"] not in lost
    }


def account(events: Sequence[Mapping[str, Any]], kills: Sequence[Kill]) -> list[str]:
    """What the kills cost, as lines of text."""
    if not events:
        return ["the job has written no events"]
    runs = list(dict.fromkeys(event["run"] for event in events))
    told = {name: run_of([e for e in events if e["run"] == name]) for name in runs}
    began = min(float(event["time"]) for event in events)
    lasted = max(float(event["time"]) for event in events) - began
    lines, lost_s, repairs = [], 0.0, 0
    for number, kill in enumerate(kills, start=1):
        run = told[kill.run]
        death = next((d for d in run.deaths if d.life.uid == kill.uid), None)
        life = death.life if death else next((x for x in run.lives if x.uid == kill.uid), None)
        who = "a process" if life is None else f"{life.role} {life.rank}"
        if life is not None and life.role == "spare":
            who = "a spare"
        whole = _whole_again(death, run.began, kill, runs, events)
        lost_s += whole or 0.0
        repairs += death is not None
        after = "never" if whole is None else span(whole)
        how = _how(death, kill.run != runs[-1])
        at = kill.time - began
        lines.append(f"{number:3}  at {at:6.1f} s  {who:<10} whole again after {after:>8}  {how}")
    apart = f", {lasted / len(kills):.1f} s apart" if kills else ""
    share = 100 * lost_s / lasted if lasted > 0 else 0.0
    return [
        *lines,
        f"{len(kills)} killed in {lasted:.1f} s{apart}: {repairs} repaired inside the job, "
        f"{len(runs) - 1} times started again",
        f"time lost      {span(lost_s)} ({share:.1f} %)",
    ]


def _whole_again(
    death: Death | None,
    began: float,
    kill: Kill,
    runs: Sequence[str],
    events: Sequence[Mapping[str, Any]],
) -> float | None:
    """Seconds from the kill until the job was whole again; None if it never was."""
    if death is not None:
        end = death.repaired if death.together is None else max(death.repaired, death.together)
        return max(0.0, began + end - kill.time)
    if kill.run == runs[-1]:
        return None
    after = runs[runs.index(kill.run) + 1]
    return max(float(e["time"]) for e in events if e["run"] == after and e["what"] == "start") - (
        kill.time
    )


def _how(death: Death | None, again: bool) -> str:
    if death is None:
        return "the job was started again" if again else ""
    if death.successor is not None:
        return f"{death.successor} took the place"
    return ""


def _marked(pid: int, mark: str) -> bool:
    try:
        return f"{_MARK}={mark}".encode() in Path(f"/proc/{pid}/environ").read_bytes().split(b"\0")
    except OSError:
        return False


def _read(log: Path, before: Container[str] = ()) -> list[dict[str, Any]]:
    """The events of a log that goes on from run to run, without those of the runs `before`."""
    events = read_events(log) if log.exists() else []
    return [event for event in events if event["run"] not in before]


@contextlib.contextmanager
def _passing_on(job: subprocess.Popen[bytes]) -> Iterator[list[int]]:
    """While the block runs, `diml run` hears of what ends this process, which waits for the job's
    end then; gives the list of what was heard."""
    told: list[int] = []

    def tell(number: int, frame: FrameType | None) -> None:
        told.append(number)
        job.send_signal(number)

    numbers = [n for n in _TOLD if signal.getsignal(n) != signal.SIG_IGN]
    before = {number: signal.signal(number, tell) for number in numbers}
    try:
        yield told
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _torment(
    job: subprocess.Popen[bytes],
    log: Path,
    before: Container[str],
    mark: str,
    flags: Namespace,
    told: Sequence[int],
) -> tuple[list[Kill], int]:
    """Kill until the job ends or the time is over, or until something was `told`; the kills and
    the job's exit status."""
    chance = random.Random(flags.seed or 0)
    kills: list[Kill] = []
    begun = float("inf")  # until all have started for the first time
    due: float | None = None
    while job.poll() is None and not told:
        time.sleep(_POLL_S)
        now = time.monotonic()
        if flags.duration is not None and now - begun > flags.duration:
            break
        if due is not None and now < due:
            continue
        events = _read(log, before)
        killed = {(kill.run, kill.uid) for kill in kills}
        targets = {pid: who for pid, who in living(events).items() if who not in killed}
        if not targets:
            continue
        if due is None:
            begun = now
            due = now + chance.expovariate(1.0 / flags.chaos)
            continue
        due = now + chance.expovariate(1.0 / flags.chaos)
        pid = chance.choice(sorted(targets))
        if _marked(pid, mark):
            kills.append(Kill(*targets[pid], time.time()))
            os.kill(pid, signal.SIGKILL)
    return kills, job.wait()


def run(flags: Namespace) -> int:
    """Start the job, torment it, print what that cost; the job's exit status.

    Raises Misuse under mpirun, and where no job is given.
    """
    if not singleton(os.environ):
        raise Misuse("--chaos starts the job by itself: give it without mpirun, and --workers")
    if not flags.job:
        raise Misuse("--chaos needs a job: --chaos SECONDS --workers N -- JOB ARGUMENTS")
    with tempfile.TemporaryDirectory(prefix="diml-chaos-") as scratch:
        log = Path(scratch) / "events.jsonl" if flags.events is None else Path(flags.events)
        before = {event["run"] for event in _read(log)}
        mark = uuid.uuid4().hex
        workers = max(2, os.cpu_count() or 2) if flags.workers is None else flags.workers
        command = [sys.executable, "-m", "diml.cli", "run", "-n", str(workers)]
        for name in ("spares", "servers"):
            if vars(flags)[name] is not None:
                command += [f"--{name}", str(vars(flags)[name])]
        env = {**os.environ, _MARK: mark, "DIML_EVENTS": str(log.absolute())}
        with (
            subprocess.Popen([*command, "--", *flags.job], env=env) as job,
            _passing_on(job) as told,
        ):
            try:
                kills, status = _torment(job, log, before, mark, flags, told)
            except KeyboardInterrupt:
                job.wait()
                raise
        print(*account(_read(log, before), kills), sep="\n")
        if not kills:
            print("nobody was killed: the job was over before its first kill was due")
        print(f"result         exit status {status}", flush=True)
    return status
