"""Chaos: who may be killed, and what the account says of it. The drill's own arithmetic."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import pytest

from diml.errors import Misuse
from diml.jobs import drill
from diml.jobs.drill_chaos import Kill, account, living
from diml.jobs.drill_programs import check_exact, expected_model

if TYPE_CHECKING:
    from diml.job import Job

PLACE = {"role": "worker", "incarnation": 0, "epoch": 0, "host": "here"}


def _event(time: float, uid: int, what: str, run: str = "a", **fields: Any) -> dict[str, Any]:
    known = {"time": 100 + time, "run": run, "uid": uid, "rank": uid, "pid": 10 + uid}
    return {**PLACE, **known, "what": what, **fields}


STARTED = [_event(0.0, uid, "start", size=2) for uid in (0, 1)]
REPAIR = _event(2.5, 0, "repair", lost=[1], seconds=0.4, phases={"gate": 0.4})
JOINED = _event(2.4, 2, "join", seconds=0.3, phases={}) | {"rank": 1, "incarnation": 1}


def test_nobody_is_killed_before_all_have_started_and_after_one_has_left() -> None:
    assert living([]) == {} == living(STARTED[:1])
    assert living(STARTED) == {10: ("a", 0), 11: ("a", 1)}
    assert living([*STARTED, _event(3.0, 0, "leave")]) == {}


def test_the_dead_are_let_be_and_the_new_ones_are_not() -> None:
    assert living([*STARTED, JOINED, REPAIR]) == {10: ("a", 0), 12: ("a", 2)}
    again = [_event(9.0, uid, "start", "b", size=2) for uid in (0, 1)]
    assert living([*STARTED, JOINED, REPAIR, *again]) == {10: ("b", 0), 11: ("b", 1)}


def test_the_account_of_a_repair_and_of_a_restart() -> None:
    again = [_event(9.0, uid, "start", "b", size=2) for uid in (0, 1)]
    events = [*STARTED, JOINED, REPAIR, *again, _event(20.0, 0, "leave", "b")]
    lines = account(events, [Kill("a", 1, 102.0), Kill("a", 0, 105.0)])
    taken = "a newly started process (process 2) took the place"
    assert " ".join(lines[0].split()) == f"1 at 2.0 s worker 1 whole again after 500 ms {taken}"
    restarted = "whole again after 4 s the job was started again"
    assert " ".join(lines[1].split()) == f"2 at 5.0 s worker 0 {restarted}"
    assert lines[2].startswith("2 killed in 20.0 s, 10.0 s apart: 1 repaired inside the job, 1 t")
    assert lines[3] == "time lost      4.5 s (22.5 %)"


def test_many_rounds_stay_exact_or_are_refused() -> None:
    for program in ("model", "local", "lazy"):
        model = expected_model(program, size=7, length=3, rounds=5 if program == "model" else 60)
        assert model.dtype == np.float32
        assert (model == np.round(model)).all() and model.max() < 1 << 24
    check_exact(10, 1000)
    with pytest.raises(Misuse, match="--rounds 10000000: on 10 ranks float32 is exact for"):
        check_exact(10, 10_000_000)


def test_rabits_own_cases_are_unchanged() -> None:
    """Element 0, whose terms are all 0: each sum over 10 ranks makes it 10 times as large."""
    for rounds in (1, 2, 3, 4):
        assert expected_model("lazy", 10, 1, rounds)[0] == 10**rounds


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--chaos", "5"], "needs a job"),
        (["--chaos", "0", "--", "diml.jobs.mf"], "is not above 0"),
        (["diml.jobs.mf"], "only --chaos takes a job"),
    ],
)
def test_what_makes_no_sense_is_refused(words: list[str], says: str) -> None:
    with pytest.raises(Misuse, match=says):
        drill.main(words)


def test_the_account_of_a_drill_is_of_its_own_run(capsys: pytest.CaptureFixture[str]) -> None:
    """An event log that there was before has the deaths of other runs."""
    told = [*STARTED, JOINED, REPAIR]
    before = [{**event, "run": "z", "seconds": 9.0} for event in told]
    lines = [json.dumps(event) for event in before + told]
    settings = SimpleNamespace(drills=(), servers=0)
    world = SimpleNamespace(host=SimpleNamespace(run="a"))
    job = SimpleNamespace(world=world, settings=settings, size=2)
    drill._report(cast("Job", job), lines, identical=True, seconds=1.0)
    printed = capsys.readouterr().out
    assert "1 deaths" in printed and "400.0 ms" in printed and "9000" not in printed


@pytest.mark.parametrize("flag", ["--for", "--workers"])
def test_only_chaos_takes_its_flags(flag: str) -> None:
    with pytest.raises(Misuse, match=f"{flag}: only --chaos"):
        drill.main([flag, "3"])


def test_an_event_log_that_there_was_before_stays(tmp_path: Path) -> None:
    log = tmp_path / "log.jsonl"
    log.write_text(json.dumps(STARTED[0]) + "\n")
    flags = ["--chaos", "9", "--workers", "2", "--events", str(log), "--", "absent"]
    assert drill.main(flags) == 2  # of `diml run`: there is no such job
    assert log.read_text().count("\n") == 1
    with pytest.raises(Misuse, match=r"event log .*: Is a directory"):
        drill.main([*flags[:5], str(tmp_path), *flags[6:]])
