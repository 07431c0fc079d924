"""The recovery drill: kill ranks and watch the job end with the same bits.

    mpirun -n 6 python -m diml.jobs.drill --spares 2 --drill 1,1,1,0 --drill 2,1,1,0
    python -m diml.jobs.drill --chaos 5 --workers 4 --spares 1 -- diml.jobs.mf --generate

Owns the account of a drill: who died where, how it was replaced, how long each step took, read
from the event log that all processes write. The programs are those of `drill_programs`; another
job's processes are killed at random by `drill_chaos`.
"""

from __future__ import annotations

import json
import os
import re
import tempfile
import time
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from diml.drill import Drill
from diml.errors import Misuse
from diml.jobs import drill_chaos
from diml.jobs.flags import at_least, job_parser, parse, real, run_job
from diml.world import marker

if TYPE_CHECKING:
    from diml.job import Job


@dataclass(frozen=True)
class Death:
    """One death as the event log tells it; times in seconds, None where nothing was seen."""

    rank: int
    life: int
    place: str
    successor: str
    detect_s: float | None
    repair_s: float | None
    load_s: float | None
    replay_s: float | None
    nbytes: int


def deaths_in(events: Sequence[dict[str, Any]]) -> list[Death]:
    """The deaths of workers, in their order, with what followed each."""
    spawned_from = max((e["size"] for e in events if e["what"] == "start"), default=0)
    struck = {e["uid"]: e for e in events if e["what"] == "drill"}
    fenced = {e["fenced"]: e for e in events if e["what"] == "fence"}
    homes = {e["uid"]: e for e in events if e["role"] == "worker"}
    deaths = []
    lost = {uid for e in events if e["what"] == "repair" for uid in e["lost"]}
    for uid in sorted(lost & set(homes), key=lambda uid: float(homes[uid]["time"])):
        home, drill = homes[uid], struck.get(uid)
        repairs = [e for e in events if e["what"] == "repair" and uid in e["lost"]]
        repaired = max(e["time"] for e in repairs)
        seconds = max(e["seconds"] for e in repairs)
        begun = float(drill["time"]) if drill else repaired - seconds
        place = fenced[uid]["reason"] if uid in fenced else "killed from outside"
        if drill:
            frozen = ", frozen" if drill["signal"] == "STOP" else ""
            place = f"v{drill['version']} s{drill['sequence']} {drill['point']}{frozen}"
        heir = next(
            (
                e
                for e in events
                if (e["role"], e["rank"]) == ("worker", home["rank"])
                and e["incarnation"] == home["incarnation"] + 1
            ),
            None,
        )
        noticed = [e["time"] - begun for e in events if e["what"] == "failure"]
        loads = _first(events, heir, "load", repaired - 1.0)
        together = _first(events, heir, "together", loads["time"] if loads else repaired)
        deaths.append(
            Death(
                rank=home["rank"],
                life=home["incarnation"],
                place=place,
                successor=_kind_of(heir, spawned_from),
                detect_s=min((t for t in noticed if t >= 0), default=None) if drill else None,
                repair_s=seconds,
                load_s=loads["seconds"] if loads else None,
                replay_s=together["time"] - loads["time"] if loads and together else None,
                nbytes=together["received"] if together else 0,
            )
        )
    return deaths


def _first(
    events: Sequence[dict[str, Any]], by: dict[str, Any] | None, what: str, since: float
) -> dict[str, Any] | None:
    if by is None:
        return None
    found = (e for e in events if (e["what"], e["uid"]) == (what, by["uid"]))
    return next((e for e in found if e["time"] >= since), None)


def _kind_of(heir: dict[str, Any] | None, spawned_from: int) -> str:
    if heir is None:
        return "nobody"
    return f"{'spare' if heir['uid'] < spawned_from else 'respawn'} {heir['uid']}"


def table(deaths: Sequence[Death]) -> list[str]:
    """The deaths as lines of text; times in milliseconds."""
    form = "{:>4} {:>4}  {:<22} {:<12} {:>9} {:>9} {:>9} {:>9} {:>10}"
    head = ("rank", "life", "died at", "replaced by", "detect", "repair", "load", "replay", "bytes")
    lines = [form.format(*head)]
    for d in deaths:
        times = [
            "-" if s is None else f"{1e3 * s:.1f} ms"
            for s in (d.detect_s, d.repair_s, d.load_s, d.replay_s)
        ]
        lines.append(form.format(d.rank, d.life, d.place, d.successor, *times, d.nbytes))
    return lines


def unfired(
    drills: Sequence[Drill], events: Sequence[dict[str, Any]], workers: int, servers: int
) -> list[Drill]:
    """The drills that nobody reached; they number workers first, then servers, then spares."""
    first = {"worker": 0, "server": workers, "spare": workers + servers}
    fired = {
        (first[e["role"]] + e["rank"], e["version"], e["sequence"], e["incarnation"], e["point"])
        for e in events
        if e["what"] == "drill"
    }
    keys = [(d, (d.rank, d.version, d.sequence, d.incarnation, d.point)) for d in drills]
    return [drill for drill, key in keys if key not in fired]


def _own_log() -> Path:
    """A file that all processes of one mpirun on a host agree on without asking each other."""
    run = os.environ.get("PMIX_NAMESPACE", f"alone-{os.getpid()}").partition("@")[0]
    # Under `diml run` it goes at the end with all that is there, on hosts of spares alone as well.
    folder = os.environ.get(marker.MEMORY) or tempfile.gettempdir()
    name = re.sub("[^A-Za-z0-9.-]", "_", run)
    # Another user's file, left behind by a drill that was killed, could not be written to.
    return Path(folder) / f"diml-drill-{os.getuid()}-{name}.jsonl"


def _report(job: Job, lines: Iterable[str], identical: bool, seconds: float) -> None:
    told = (json.loads(line) for line in lines)
    # An event log goes on from run to run.
    own = (event for event in told if event["run"] == job.world.host.run)
    events = sorted(own, key=lambda e: float(e["time"]))
    deaths, settings = deaths_in(events), job.settings
    print(*table(deaths), sep="\n")
    for drill in unfired(settings.drills, events, job.size, settings.servers or 0):
        print(f"did not fire: {drill}")
    print(f"{len(deaths)} deaths, {seconds:.2f} s on {job.size} ranks")
    print(f"identical to the run without failures: {'yes' if identical else 'NO'}", flush=True)


def main(arguments: Sequence[str]) -> int | None:
    """Run one program under drills and print what happened."""
    parser = job_parser("drill", "Recovery drill: kill ranks, and see the same bits come out.")
    parser.add_argument(
        "--program", choices=("model", "local", "lazy"), default="model",
        help="Rabit's recover programs: global state (default), local state, lazy checkpoints",
    )  # fmt: skip
    parser.add_argument(
        "--ndata", type=at_least(1), default=10_000, help="elements of the model (default 10000)"
    )
    parser.add_argument("--rounds", type=at_least(1), default=3, help="checkpoints (default 3)")
    add = parser.add_argument_group("another job, its processes killed at random").add_argument
    add("--chaos", type=real(above=0), metavar="MTBF", help="mean seconds between two kills")
    add("--for", dest="duration", type=real(above=0), metavar="SECONDS", help="then no more kills")
    add("--workers", type=at_least(1), help="of that job (the cores)")
    add("job", nargs="*", metavar="-- JOB ...", help="module or script, its flags")
    flags = parse(parser, arguments)
    if flags.chaos is not None:
        return drill_chaos.run(flags)
    if flags.job:
        raise Misuse(f"{flags.job[0]!r}: only --chaos takes a job")
    for name, value in (("--for", flags.duration), ("--workers", flags.workers)):
        if value is not None:
            raise Misuse(f"{name}: only --chaos takes it")
    import diml
    from diml.jobs.drill_programs import PROGRAMS, check_exact, expected_model

    own_log = _own_log()
    with diml.init(flags=vars(flags), events=own_log) as job:
        job.identify(program=flags.program, ndata=flags.ndata)
        check_exact(job.size, flags.rounds)
        begun = time.perf_counter()
        model = PROGRAMS[flags.program](job, flags.ndata, flags.rounds)
        seconds = time.perf_counter() - begun
        digests = job.allgather(zlib.crc32(model.tobytes()))
        wanted = None
        if job.rank == 0:
            twin = expected_model(flags.program, job.size, flags.ndata, flags.rounds)
            wanted = zlib.crc32(twin.tobytes())
        identical = digests == [job.broadcast(wanted)] * job.size
        log = Path(job.settings.events)
        # Each host has a log of its own, unless `--events` names one that all see.
        logs = job.allgather(log.read_text().splitlines() if log.exists() else [])
        if job.rank == 0 and not job.settings.quiet:
            _report(job, set().union(*logs), identical, seconds)
        job.barrier()
        if log == own_log:
            log.unlink(missing_ok=True)  # by every rank: each host has one
    return 0 if identical else 1


if __name__ == "__main__":
    run_job(main)
