"""What an event log says about a run: who lived when, who died and how it went on, how fast it was.

Pure: events in (see `diml.events` for the schema), values out. Must not know how they are shown.
All times are seconds since the first event of the run, by the clocks of the hosts.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from diml.errors import Misuse

Event: TypeAlias = Mapping[str, Any]
Seat: TypeAlias = tuple[str, int]
_SEATED = ("worker", "server")
_OUTSIDE = "killed from outside"


@dataclass(frozen=True, slots=True)
class Life:
    """A process in one seat (or waiting as a spare) from `begin` to `end`."""

    uid: int
    role: str
    rank: int
    incarnation: int
    begin: float
    end: float

    @property
    def seat(self) -> Seat:
        """Role and rank."""
        return self.role, self.rank


@dataclass(frozen=True, slots=True)
class Death:
    """A death and what followed it; None where the log does not say.

    Attributes:
        life: what it ended.
        time: when; for deaths that nobody ordered, when the repair began.
        cause: in words.
        noticed_s: from the death to the first who noticed.
        repaired: when the last rank had come through the repair.
        repair_s: how long the repair took on the rank that it took longest.
        phases: seconds of its steps, in their order.
        successor: in words, who took the seat.
        load_s: how long the successor fetched its checkpoint.
        together: when all were at one place again (collectives).
        received: bytes that brought the successor there.
    """

    life: Life
    time: float
    cause: str
    noticed_s: float | None
    repaired: float
    repair_s: float
    phases: Mapping[str, float]
    successor: str | None
    load_s: float | None
    together: float | None
    received: int | None


@dataclass(frozen=True, slots=True)
class Work:
    """What the processes in one worker's seat did: units, seconds of work, share of waiting."""

    units: float
    unit: str
    seconds: float
    waiting: float | None


@dataclass
class Run:
    """One run as its log tells it. `series` has points (time, value) by name; `staleness` how
    many reads lacked so many clocks; `work` is by worker rank, `sent` (bytes) by seat; it is run
    `number` (from 1) `of` those in its log."""

    name: str
    began: float
    seconds: float
    hosts: tuple[str, ...]
    about: Mapping[str, Any]
    lives: list[Life]
    deaths: list[Death]
    finished: bool
    series: dict[str, list[tuple[float, float]]] = field(default_factory=dict)
    steps: tuple[int, int] | None = None
    work: dict[int, Work] = field(default_factory=dict)
    staleness: dict[int, int] = field(default_factory=dict)
    bound: int | None = None
    sent: dict[Seat, int] = field(default_factory=dict)
    number: int = 1
    of: int = 1

    @property
    def workers(self) -> int:
        """Number of worker seats."""
        return len({life.rank for life in self.lives if life.role == "worker"})


def run_of(events: Iterable[Event]) -> Run:
    """The run that the log ends with; a log may hold several, one after the other.

    Raises Misuse if there is none.
    """
    ordered = sorted(events, key=lambda event: float(event["time"]))
    if not ordered:
        raise Misuse("the event log is empty")
    names = list(dict.fromkeys(event["run"] for event in ordered))
    name = ordered[-1]["run"]
    own = [event for event in ordered if event["run"] == name]
    began = float(own[0]["time"])
    start = next((e for e in own if e["what"] == "start" and "command" in e), {})
    lives = _lives(own, began)
    finished = any(e["what"] == "leave" for e in own)
    run = Run(
        name=name,
        began=began,
        seconds=float(own[-1]["time"]) - began,
        hosts=tuple(sorted({event["host"] for event in own})),
        about={k: start[k] for k in ("command", "settings", "versions", "cores") if k in start},
        lives=lives,
        deaths=_deaths(own, began, lives),
        finished=finished,
        series=_series(own, began),
        work=_work(own),
        sent=_sent(own),
        number=names.index(name) + 1,
        of=len(names),
    )
    for event in own:
        if event["what"] == "progress":
            run.steps = int(event["done"]), int(event["total"])
        if event["what"] == "staleness":
            run.bound = event["bound"]
            for staleness, reads in event["reads"].items():
                run.staleness[int(staleness)] = run.staleness.get(int(staleness), 0) + int(reads)
    return run


def _lives(events: Sequence[Event], began: float) -> list[Life]:
    """One life a process and seat, in the order of the seats."""
    lost: dict[int, float] = {}
    for event in events:
        if event["what"] == "repair":
            for uid in event["lost"]:
                lost[uid] = min(lost.get(uid, event["time"]), event["time"] - event["seconds"])
    spans: dict[tuple[int, str, int, int], list[float]] = defaultdict(list)
    for event in events:
        key = (event["uid"], event["role"], event["rank"], event["incarnation"])
        spans[key].append(float(event["time"]))
    last = float(events[-1]["time"])
    by_uid: dict[int, list[tuple[float, tuple[int, str, int, int]]]] = defaultdict(list)
    for key, times in spans.items():
        by_uid[key[0]].append((min(times), key))
    lives = []
    for uid, found in by_uid.items():
        found.sort()
        for number, (begin, (_, role, rank, incarnation)) in enumerate(found):
            end = found[number + 1][0] if number + 1 < len(found) else lost.get(uid, last)
            end = max(begin, end)
            lives.append(Life(uid, role, rank, incarnation, begin - began, end - began))
    return sorted(lives, key=lambda life: (_order(life.seat), life.begin))


def _deaths(events: Sequence[Event], began: float, lives: Sequence[Life]) -> list[Death]:
    repairs = [event for event in events if event["what"] == "repair"]
    lost = {uid for event in repairs for uid in event["lost"]}
    started = max((e["size"] for e in events if e["what"] == "start"), default=0)
    deaths = []
    for uid in lost:
        # A spare that took a seat has had two lives: it was the seat's that ended.
        mine = max((x for x in lives if x.uid == uid), key=lambda x: x.begin, default=None)
        if mine is not None:
            told = [event for event in repairs if uid in event["lost"]]
            deaths.append(_death(mine, told, events, began, lives, int(started)))
    return sorted(deaths, key=lambda death: death.time)


def _death(
    life: Life,
    repairs: Sequence[Event],
    events: Sequence[Event],
    began: float,
    lives: Sequence[Life],
    started: int,
) -> Death:
    longest = max(repairs, key=lambda event: float(event["seconds"]))
    time, cause = life.end, _OUTSIDE
    for event in events:
        if event["what"] == "drill" and event["uid"] == life.uid:
            time = event["time"] - began
            place = f"version {event['version']}, call {event['sequence']}, {event['point']}"
            frozen = event["signal"] == "STOP"
            cause = f"{'frozen by ' if frozen else ''}a drill at {place}"
        if event["what"] == "fence" and event["fenced"] == life.uid:
            time, why = event["time"] - began, f"fenced: {event['reason']}"
            cause = why if cause == _OUTSIDE else f"{cause}; {why}"
    repaired = max(float(event["time"]) for event in repairs) - began
    noticed = [
        event["time"] - began - time
        for event in events
        if event["what"] == "failure" and 0 <= event["time"] - began - time < repaired - time
    ]
    heir = next(
        (x for x in lives if x.seat == life.seat and x.incarnation == life.incarnation + 1), None
    )
    # A spare has no successor of its own: its place is simply gone.
    heir = heir if life.role in _SEATED else None
    load = _next(events, heir, "load", began + time)
    together = _next(events, heir, "together", float(load["time"]) if load else None)
    return Death(
        life=life,
        time=time,
        cause=cause,
        noticed_s=min(noticed, default=None),
        repaired=repaired,
        repair_s=float(longest["seconds"]),
        phases=longest["phases"],
        successor=None if heir is None else _words(heir, started),
        load_s=float(load["seconds"]) if load else None,
        together=float(together["time"]) - began if together else None,
        received=int(together["received"]) if together else None,
    )


def _words(heir: Life, started: int) -> str:
    how = "a spare" if heir.uid < started else "a newly started process"
    return f"{how} (process {heir.uid})"


def _next(events: Sequence[Event], by: Life | None, what: str, since: float | None) -> Event | None:
    if by is None or since is None:
        return None
    found = (e for e in events if e["what"] == what and e["uid"] == by.uid)
    return next((event for event in found if event["time"] >= since), None)


def _series(events: Sequence[Event], began: float) -> dict[str, list[tuple[float, float]]]:
    """Numbers of the progress, by name, over time; each step once, as it was told first."""
    series: dict[str, list[tuple[float, float]]] = {}
    reached = -1
    for event in events:
        if event["what"] == "progress" and event["done"] > reached:
            reached = event["done"]
            for name, value in event["values"].items():
                if isinstance(value, int | float):
                    point = (float(event["time"]) - began, float(value))
                    series.setdefault(name.replace("_", " "), []).append(point)
    return series


def _work(events: Sequence[Event]) -> dict[int, Work]:
    """By worker rank: the last account of each process that had the seat, added up."""
    accounts: dict[tuple[int, int], Event] = {}
    looks: dict[tuple[int, int], list[int]] = {}
    for event in events:
        if event["role"] != "worker":
            continue
        key = (event["rank"], event["uid"])
        if event["what"] == "work":
            accounts[key] = event
        elif event["what"] == "activity":
            seen = looks.setdefault(key, [0, 0])
            seen[0] += event["ticks"]
            seen[1] += event["waiting"]
    work: dict[int, Work] = {}
    for rank in sorted({rank for rank, _ in (*accounts, *looks)}):
        told = [event for (r, _), event in accounts.items() if r == rank]
        seconds = sum(float(event["seconds"]) for event in told)
        waited = sum(float(event["waited_s"]) for event in told)
        ticks = sum(seen[0] for (r, _), seen in looks.items() if r == rank)
        inside = sum(seen[1] for (r, _), seen in looks.items() if r == rank)
        waiting = waited / seconds if seconds else inside / ticks if ticks else None
        units = sum(float(event["units"]) for event in told)
        work[rank] = Work(units, told[-1]["unit"] if told else "", seconds, waiting)
    return work


def _sent(events: Sequence[Event]) -> dict[Seat, int]:
    """Bytes by seat: the last account of each process that had it, added up."""
    accounts = {
        (e["role"], e["rank"], e["uid"], e["by"]): int(e["wire_bytes"])
        for e in events
        if e["what"] == "traffic"
    }
    sent: dict[Seat, int] = defaultdict(int)
    for (role, rank, *_), nbytes in accounts.items():
        sent[role, rank] += nbytes
    return {seat: sent[seat] for seat in sorted(sent, key=_order) if sent[seat]}


def _order(seat: Seat) -> tuple[int, int]:
    """Workers first, then servers, then spares."""
    roles = (*_SEATED, "spare")
    return roles.index(seat[0]) if seat[0] in roles else len(roles), seat[1]


def told(death: Death) -> str:
    """A death and its repair as sentences."""
    who = f"{death.life.role.capitalize()} {death.life.rank}"
    if death.life.role == "spare":
        who = f"Spare process {death.life.uid}"
    times = {0: "", 1: " (its second life)"}.get(
        death.life.incarnation, f" (life {death.life.incarnation + 1})"
    )
    words = [f"{who}{times} died at {death.time:.2f} s ({death.cause})."]
    if death.noticed_s is not None:
        words.append(f"The first of the others noticed after {span(death.noticed_s)}.")
    phases = ", ".join(f"{name} {span(seconds)}" for name, seconds in death.phases.items())
    words.append(f"The repair took {span(death.repair_s)} ({phases}).")
    if death.successor is not None:
        words.append(f"{death.successor.capitalize()} took the place.")
    elif death.life.role in _SEATED:
        words.append("Nobody took the place.")
    if death.load_s is not None:
        words.append(f"It had its checkpoint after {span(death.load_s)}.")
    if death.together is not None:
        words.append(
            f"All were at one place again {span(death.together - death.time)} after the death"
            f" ({death.received or 0:,} bytes received)."
        )
    return " ".join(words)


def span(seconds: float) -> str:
    """A duration to three digits: 0.8 ms, 21.3 ms, 1.07 s, 12.3 s."""
    if seconds < 1:
        return f"{1e3 * seconds:.3g} ms"
    return f"{seconds:.3g} s" if seconds < 1000 else f"{seconds:.0f} s"
