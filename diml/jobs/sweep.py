"""A grid or random search of any job's flags: python -m diml.jobs.sweep, `diml sweep`.

Owns the command line and the course: all workers meet, are dealt out into groups, and each group
runs one trial after the other on a communicator of its own, until none is left or somebody dies.
Then all meet again: the world is whole by then, and what a death has cut off is tried once more.
Must not know what a job does (`sweep_trial`), how trials are handed out (`sweep_desk`) or how
finished ones are kept (`sweep_table`).

Invariants: what a meeting has agreed on is in a checkpoint, so a replacement goes on at the next
meeting; every member of a group keeps its finished rows until then, so no row is lost with
worker 0.
"""

from __future__ import annotations

import argparse
import contextlib
import math
import os
from argparse import Namespace
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import diml
from diml.errors import DimlError, GaveUp, Misuse, PeerFailed, Resumable
from diml.jobs.flags import JobParser, at_least, job_parser, parse, run_job
from diml.jobs.sweep_desk import Desk, next_trial
from diml.jobs.sweep_plan import Plan, fingerprint, read_plan
from diml.jobs.sweep_table import DIVERGED, FAILED, LOST, MISUSE, NO_METRIC, OK, Row, Table
from diml.jobs.sweep_trial import Outcome, Program, Stop, plain, program, run_trial
from diml.report.progress import Progress
from diml.world import marker

_TRIES = 4  # of a trial whose ranks die
_BARREN_MOST = 6  # meetings in a row that follow a death and bring no finished trial
_DEADLINE_S = 30 * 86400.0  # for who waits while others run trials, whose own deadline is theirs
_APART_S = 3600.0  # between the ends of one trial on its ranks: twice the usual deadline of a job
_MISUSE, _INTERRUPTED = 2, 130


def parser() -> JobParser:
    """The command line."""
    about = (
        "Search the flags of a job: a grid, random draws, or both. `diml sweep -n N ...` starts "
    )
    about += "mpirun by itself and takes the flags of `diml run` as well."
    made = job_parser("sweep", about)
    add = made.add_argument
    grid = "NAME=V1,V2,... or NAME alone (with the flag and without it); repeatable"
    add("--grid", action="append", default=[], metavar="SPEC", help=grid)
    random = "NAME=log:A:B, uniform:A:B, int:A:B or V1,V2,...; repeatable"
    add("--random", action="append", default=[], metavar="SPEC", help=random)
    add("--trials", type=at_least(1), metavar="T", help="in all (default: the points of the grid)")
    add("--ranks-per-trial", type=at_least(1), default=1, metavar="R", help="workers (default 1)")
    add(
        "--metric", required=True, metavar="NAME", help="a value that the job tells, e.g. test_loss"
    )
    add("--maximize", action="store_true", help="the best trial has the highest metric")
    add("--csv", type=Path, required=True, metavar="FILE", help="results; goes on from what it has")
    job = "module or script, its flags; {trial} in them becomes the trial's number"
    add("job", nargs=argparse.REMAINDER, metavar="-- JOB ...", help=job)
    return made


class Sweep:
    """One worker's part of the search."""

    def __init__(
        self, job: diml.Job, flags: Namespace, plan: Plan, words: Sequence[str], stop: Stop
    ) -> None:
        self._job, self._flags, self._plan, self._stop = job, flags, plan, stop
        self._program, self._words = program(words[0]), words[1:]
        self._sweep = fingerprint(plan, words, flags.ranks_per_trial, plain(flags.metric))
        self._rows: dict[int, Row] = {}
        self._fresh: list[Row] = []
        self._cut: tuple[int, Outcome] | None = None
        self._progress = Progress.of(job, "sweep", plan.trials)
        self._table: Table | None = None
        self._goes_on = f"what is finished is in {flags.csv}, and the same command goes on"

    def run(self) -> dict[int, Row]:
        """All trials of the plan; returns their rows on every worker."""
        job = self._job
        job.identify(sweep=self._sweep)
        version, model, _ = job.load_checkpoint()
        model = model or {"rows": [], "lost": {}, "barren": -1, "stop": ""}
        desk = None
        if job.rank == 0:
            flags = self._flags
            self._table = Table(flags.csv, self._plan.names, flags.metric, self._sweep)
        with self._progress:
            # A replacement may have come when all was done: the others are on their way out then.
            done = version > 0 and not self._settled(model)
            while not done:
                model = self._meet(model)
                if desk is not None:
                    desk.close()
                job.checkpoint(model)
                left = self._settled(model)
                done = not left
                if left and model["stop"]:
                    raise Resumable(f"stopped by {model['stop']}; {self._goes_on}")
                if left:
                    desk = self._episode(left)
        return self._rows

    def _settled(self, model: dict[str, Any]) -> list[int]:
        """Keep what a meeting has agreed on; returns the trials that are left, in their order."""
        self._rows = {int(row["trial"]): row for row in model["rows"]}
        for row in self._rows.values():
            self._record(row)
        left = [trial for trial in range(self._plan.trials) if trial not in self._rows]
        if left and model["barren"] >= _BARREN_MOST:
            raise GaveUp(f"ranks keep dying in trials; {len(left)} are left, {left[0]} the first")
        return self._in_order(left, model["lost"])

    def _meet(self, model: dict[str, Any]) -> dict[str, Any]:
        """Put together what all know: finished rows, and what became of trials cut off."""
        known = list(self._table.rows.values()) if self._table is not None else []
        told = self._job.allgather((known + self._fresh, self._cut, self._stop.name))
        self._fresh, self._cut = [], None
        rows = {int(row["trial"]): row for row in model["rows"]}
        before = len(rows)
        rows |= {int(row["trial"]): row for some, _, _ in told for row in some}
        cut: dict[int, list[Outcome]] = {}
        for _, one, _ in told:
            if one is not None and one[0] not in rows:
                cut.setdefault(one[0], []).append(one[1])
        lost = dict(model["lost"])
        for trial, outcomes in sorted(cut.items()):
            row = self._row(trial, outcomes)
            if row["status"] == OK:
                # Its job has survived the death (it had a spare), and has come to its end.
                rows[trial] = row
                continue
            self._cut_off(trial, row, lost, rows)
        if not cut and len(rows) == before and model["barren"] >= 0:
            # All members of the groups that ran something have died, and nobody can tell what it
            # was: that which is dealt out first, since nothing was finished.
            left = self._in_order(set(range(self._plan.trials)) - rows.keys(), lost)
            for trial in left[: self._job.size // self._flags.ranks_per_trial]:
                self._cut_off(trial, self._row(trial, [Outcome()]), lost, rows)
        barren = 0 if len(rows) > before or model["barren"] < 0 else model["barren"] + 1
        stop = max(name for _, _, name in told)
        agreed = {"lost": lost, "barren": barren, "stop": stop}
        return {"rows": [rows[t] for t in sorted(rows)], **agreed}

    def _cut_off(self, trial: int, row: Row, lost: dict[str, int], rows: dict[int, Row]) -> None:
        """Count a try of a trial whose ranks have died; the last one is its end."""
        lost[str(trial)] = lost.get(str(trial), 0) + 1
        if lost[str(trial)] >= _TRIES:
            reason = f"ranks died in each of {_TRIES} tries"
            rows[trial] = {**row, "status": LOST, self._flags.metric: "", "reason": reason}

    @staticmethod
    def _in_order(left: Iterable[int], lost: Mapping[str, int]) -> list[int]:
        """What may kill its ranks comes last, so that the others are done by then."""
        return sorted(left, key=lambda trial: (lost.get(str(trial), 0), trial))

    def _episode(self, left: Sequence[int]) -> Desk | None:
        """Run trials until none is left or somebody dies. Returns the desk, still open."""
        from diml.world.groups import grouped  # starts MPI, which is for `diml.init` to do

        job = self._job
        try:
            group = grouped(job.world, self._flags.ranks_per_trial)
        except PeerFailed:
            job.world.recover()
            return None
        desk = Desk(group.second(), left, self._record) if job.rank == 0 else None
        row = None
        while (trial := next_trial(group, row, lambda: self._stop.name)) is not None:
            if group.link.rank == 0:
                job.event("trial", trial=trial, status="begun")
            words = [word.replace("{trial}", str(trial)) for word in self._words]
            words += self._plan.words(trial)
            outcome = run_trial(self._program, words, group.link.comm, self._plan.seed, self._stop)
            if outcome.status == _INTERRUPTED:
                raise KeyboardInterrupt
            with job.world.watchdog.limit(_APART_S, "the other ranks of a trial"):
                outcomes = group.gathered(outcome)
            if outcomes is None:
                self._cut = (trial, outcome)
                break
            told = [one.told for one in outcomes if one.told]
            self._stop.name = told[0] if told else self._stop.name
            if told and any(one.status == Resumable.exit_status for one in outcomes):
                break
            row = self._row(trial, outcomes)
            self._fresh.append(row)
        # Whatever made this group leave, nobody may go on waiting for the desk or for its word.
        with contextlib.suppress(DimlError):
            group.everyone.revoke()
        return desk

    def _row(self, trial: int, outcomes: Sequence[Outcome]) -> Row:
        """The line of a trial from how it ended on each of its ranks."""
        told: dict[str, tuple[float, float]] = {}
        for outcome in outcomes:
            for name, at in outcome.values.items():
                told[name] = max(at, told.get(name, at))
        ended = max(outcomes, key=lambda one: (one.status == _MISUSE, one.status != 0))
        status, reason, shown = OK, ended.reason, ""
        _, value = told.get(plain(self._flags.metric), (0.0, None))
        if ended.status:
            status = MISUSE if ended.status == _MISUSE else FAILED
        elif value is None:
            status = NO_METRIC
            reason = f"the job tells {', '.join(sorted(told)) or 'no values'}"
        elif not math.isfinite(value):
            status = DIVERGED
        else:
            shown = repr(value)
        return {
            "seed": str(self._plan.seed),
            **self._plan.values(trial),
            "trial": str(trial),
            self._flags.metric: shown,
            "seconds": f"{max(one.seconds for one in outcomes):.3f}",
            "status": status,
            "reason": reason,
            "sweep": self._sweep,
        }

    def _record(self, row: Row) -> None:
        """Worker 0: keep a finished trial, once. Raises GaveUp where the disk refuses it."""
        try:
            if self._table is None or not self._table.add(row):
                return
        except OSError as error:
            raise GaveUp(f"--csv {self._flags.csv}: {error.strerror or error}") from None
        rows = self._table.rows
        marker.say("version", len(rows))
        self._job.event("trial", trial=int(row["trial"]), status=row["status"])
        best = self.best(rows)
        shown = {f"best_{self._flags.metric}": float(best[self._flags.metric])} if best else {}
        self._progress.update(len(rows), **shown)

    def best(self, rows: dict[int, Row]) -> Row | None:
        """The best of the trials that ended well, the first of equal ones."""
        sign = -1.0 if self._flags.maximize else 1.0
        good = [rows[trial] for trial in sorted(rows) if rows[trial]["status"] == OK]
        return min(good, key=lambda row: sign * float(row[self._flags.metric]), default=None)


def _check(program: Program, words: Sequence[str], plan: Plan) -> None:
    """Raise Misuse if the job would take the flags of no trial."""
    if program.parser is None:
        return
    first: Misuse | None = None
    for trial in range(plan.trials):
        try:
            program.parser().parse_args([*words, *plan.words(trial)])
            return
        except Misuse as error:
            first = first or error
    assert first is not None
    raise first


def _plan_of(flags: Namespace) -> tuple[Plan, list[str]]:
    """The plan, and the job's words. Raises Misuse for what cannot be."""
    words = flags.job[1:] if flags.job[:1] == ["--"] else flags.job
    if not words:
        raise Misuse("no job given: diml sweep ... -- JOB ARGUMENTS")
    seed = flags.seed if flags.seed is not None else os.environ.get("DIML_SEED") or "0"
    if not str(seed).isdigit():
        raise Misuse(f"--seed: {seed!r} is not a whole number from 0 on")
    if any(word.partition("=")[0] == "--seed" for word in words):
        raise Misuse("give --seed to the sweep, before the --: all trials have it")
    plan = read_plan(flags.grid, flags.random, flags.trials, int(seed))
    _check(program(words[0]), words[1:], plan)
    return plan, words


def _tell(flags: Namespace, plan: Plan, rows: dict[int, Row], best: Row | None) -> None:
    """The result in a few words."""
    good = sum(row["status"] == OK for row in rows.values())
    print(f"sweep: {len(rows)} trials, {good} ok: {flags.csv}")
    if best is not None:
        values = " ".join(f"--{name}={best[name]}" for name in plan.names)
        print(
            f"best {flags.metric} {float(best[flags.metric]):.6g}: trial {best['trial']} {values}"
        )


def main(arguments: Sequence[str]) -> int:
    """Run the sweep on this rank; 0 once every trial has its line, however it ended.

    Raises Misuse if the job refuses every trial, if none has the metric, and for bad flags."""
    flags = parse(parser(), arguments)
    plan, words = _plan_of(flags)
    # What is finished is in the CSV; a copy in the memory of the nodes would be an older one.
    os.environ.pop(marker.MEMORY, None)
    stop = Stop()
    with diml.init(flags=vars(flags), deadline_s=_DEADLINE_S) as job:
        size = flags.ranks_per_trial
        if job.size % size:
            raise Misuse(f"{job.size} workers do not make groups of --ranks-per-trial {size}")
        if job.settings.on_failure == "shrink":
            raise Misuse("--on-failure shrink: the groups of a sweep need all their ranks")
        if job.world.membership.servers:
            raise Misuse("--servers are of the trials: give them behind the --")
        sweep = Sweep(job, flags, plan, words, stop)
        marker.say("ready")
        rows = sweep.run()
        if job.rank == 0:
            _tell(flags, plan, rows, sweep.best(rows))
    if all(row["status"] == MISUSE for row in rows.values()):
        raise Misuse(f"every trial was refused: {rows[min(rows)]['reason']}")
    lacking = [row["reason"] for row in rows.values() if row["status"] == NO_METRIC]
    if lacking and all(row["status"] != OK for row in rows.values()):
        raise Misuse(f"no trial had the metric {flags.metric}: {lacking[0]}")
    return 0


if __name__ == "__main__":
    run_job(main, hosts_programs=True)
