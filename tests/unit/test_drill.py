"""The drill grammar: what it reads, what it refuses, when a drill is due."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from diml.drill import POINTS, SIGNALS, Drill, DrillPlan, parse_drill, parse_drills
from diml.errors import Misuse
from diml.jobs.drill import deaths_in, unfired


@pytest.mark.parametrize(
    ("text", "drill"),
    [
        ("1,2,3,0", Drill(1, 2, 3, 0, "entry", "KILL")),
        ("1,2,3,0,inside", Drill(1, 2, 3, 0, "inside", "KILL")),
        ("1,2,3,0,STOP", Drill(1, 2, 3, 0, "entry", "STOP")),
        (" 10, 0,0,1, repair ,KILL", Drill(10, 0, 0, 1, "repair", "KILL")),
    ],
)
def test_reads_the_grammar(text: str, drill: Drill) -> None:
    assert parse_drill(text) == drill


@given(
    st.builds(
        Drill,
        *[st.integers(0, 10**6)] * 4,
        st.sampled_from(POINTS),
        st.sampled_from(SIGNALS),
    )
)
def test_every_drill_reads_back_from_its_text(drill: Drill) -> None:
    assert parse_drill(str(drill)) == drill


@pytest.mark.parametrize(
    ("text", "word"),
    [
        ("", "0 of the 4 numbers|1 of the 4"),
        ("1,2,3", "3 of the 4 numbers"),
        ("1,2,x,0", "sequence 'x'"),
        ("-1,2,3,0", "rank '-1'"),
        ("1,2,3,٣", "incarnation '٣'"),
        ("1,2,3,0,middle", "point 'middle'"),
        ("1,2,3,0,inside,TERM", "signal 'TERM'"),
        ("1,2,3,0,STOP,inside", "nothing may follow"),
        ("1,2,3,0,inside,KILL,1", "nothing may follow"),
    ],
)
def test_refuses_in_one_line_that_names_the_word(text: str, word: str) -> None:
    with pytest.raises(Misuse, match=word) as failure:
        parse_drill(text)
    assert "\n" not in str(failure.value)


def test_a_plan_strikes_at_its_coordinates_only() -> None:
    plan = DrillPlan(parse_drills("1,2,3,0 1,2,3,1,checkpoint,STOP"))
    assert plan.strike(1, 2, 3, 0, "entry") == "KILL"
    assert plan.strike(1, 2, 3, 1, "checkpoint") == "STOP"
    assert plan.strike(1, 2, 3, 1, "checkpoint") is None, "it strikes once"
    for miss in [(0, 2, 3, 0), (1, 1, 3, 0), (1, 2, 2, 0), (1, 2, 3, 1), (1, 2, 3, 2)]:
        assert plan.strike(*miss, "entry") is None
    assert plan.strike(1, 2, 3, 0, "inside") is None
    assert DrillPlan().strike(0, 0, 0, 0, "entry") is None


def test_two_signals_at_one_place_are_refused() -> None:
    with pytest.raises(Misuse, match="another signal"):
        DrillPlan(parse_drills("1,2,3,0,KILL 1,2,3,0,STOP"))


def test_drills_that_nobody_reached_are_found_whoever_they_were_for() -> None:
    def struck(role: str, rank: int) -> dict[str, object]:
        where = {"version": 1, "sequence": 1, "incarnation": 0, "point": "entry"}
        return {"what": "drill", "role": role, "rank": rank, **where}

    drills = parse_drills("0,1,1,0 1,1,1,0 2,1,1,0 3,1,1,0 4,1,1,0")
    events = [struck("worker", 0), struck("server", 0), struck("spare", 1)]
    left = unfired(drills, events, workers=2, servers=1)
    assert [drill.rank for drill in left] == [1, 3]


def test_a_frozen_worker_is_told_as_what_the_drill_did_and_another_as_what_was_seen() -> None:
    def event(time: float, uid: int, what: str, **fields: object) -> dict[str, object]:
        place = {"role": "worker", "rank": uid, "incarnation": 0}
        return {"time": time, "uid": uid, "what": what, **place, **fields}

    where = {"version": 1, "sequence": 2, "point": "entry", "signal": "STOP"}
    events = [
        event(0, 2, "start", size=3),
        event(1, 1, "drill", **where),
        event(11, 0, "fence", fenced=1, reason="stopped for 10 s"),
        event(11, 0, "fence", fenced=2, reason="late for 30 s"),
        event(12, 0, "failure"),
        event(13, 0, "repair", lost=[1, 2], seconds=0.5),
    ]
    late, frozen = deaths_in(events)
    assert (frozen.place, frozen.detect_s) == ("v1 s2 entry, frozen", 11)
    assert (late.place, late.detect_s) == ("late for 30 s", None)
