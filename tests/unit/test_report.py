"""The report of an event log: what it says of a run with a death."""

from __future__ import annotations

import json
import sys
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest

from diml.cli import main
from diml.report.page import binned

PHASES = {"gate": 0.004, "shrink": 0.002, "restore": 0.006}


def _event(time: float, uid: int, what: str, **fields: Any) -> dict[str, Any]:
    place = {"role": "worker", "rank": uid, "incarnation": 0, "epoch": 0}
    known = {"run": "r", "host": "here", "pid": 100 + uid}
    return {"time": 1000 + time, "uid": uid, **known, **place, "what": what, **fields}


@pytest.fixture
def log(tmp_path: Path) -> Path:
    """Two workers and a spare; worker 1 dies at 1 s, is replaced, and the run ends at 3 s."""
    events = [_event(0.0, uid, "start", size=3) for uid in (0, 1)]
    events.append(_event(0.0, 2, "start", size=3) | {"role": "spare", "rank": 0})
    events += [_event(0.5, 0, "progress", done=1, total=4, values={"objective": 9.0})]
    drill = {"version": 3, "sequence": 0, "point": "entry", "signal": "KILL"}
    events.append(_event(1.0, 1, "drill", **drill))
    seated = {"rank": 1, "incarnation": 1, "epoch": 1}
    for uid, place in ((0, {"epoch": 1}), (2, seated)):
        repair = _event(1.1, uid, "repair", lost=[1], seconds=0.012, phases=PHASES)
        events.append(repair | place)
    events += [_event(2.0, 0, "progress", done=4, total=4, values={"objective": 1.0})]
    events += [_event(3.0, 0, "leave"), _event(3.0, 2, "leave") | seated]
    path = tmp_path / "run.jsonl"
    path.write_text("".join(json.dumps(event) + "\n" for event in events))
    return path


class _Tags(HTMLParser):
    """Whether all opened elements are closed, and what is fetched from elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.open: list[str] = []
        self.fetched: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in ("meta", "br", "link", "img", "input", "hr"):
            self.open.append(tag)
        self.fetched += [value for name, value in attrs if name in ("src", "href") and value]

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_the_death_its_repair_and_its_successor_are_told(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page = log.with_suffix(".html")
    assert main(["report", str(log), "-o", str(page)]) == 0
    printed = capsys.readouterr().out
    assert "Worker 1 died at 1 s" in printed or "Worker 1 died at 1.00 s" in printed
    assert "process 2" in printed
    assert "12 ms" in printed or "12.0 ms" in printed
    text = page.read_text()
    assert "Worker 1 died" in text
    tags = _Tags()
    tags.feed(text)
    assert not tags.open
    assert not [name for name in tags.fetched if not name.startswith("#")]
    assert text.count("<svg") >= 2


def test_a_spare_that_dies_in_the_seat_it_took_is_told_as_that_worker(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    seated = {"rank": 1, "incarnation": 1, "epoch": 1}
    where = {"version": 0, "sequence": 1, "point": "load", "signal": "STOP"}
    events = [
        _event(1.2, 2, "drill", **where) | seated,
        _event(1.4, 0, "fence", fenced=2, reason="stopped for 10 s"),
        _event(1.5, 0, "repair", lost=[2], seconds=0.01, phases=PHASES),
        _event(1.6, 9, "load", version=3, seconds=0.001) | seated | {"incarnation": 2},
    ]
    with open(log, "a") as file:
        file.writelines(json.dumps(event) + "\n" for event in events)
    assert main(["report", str(log), "-o", str(log.with_suffix(".html"))]) == 0
    printed = capsys.readouterr().out
    assert (
        "Worker 1 (its second life) died at 1.40 s (frozen by a drill at version 0, call 1, "
        in (printed)
    )
    assert "load; fenced: stopped for 10 s)" in printed
    assert "A newly started process (process 9) took the place." in printed
    assert "Spare process" not in printed


def test_two_runs_stand_side_by_side(log: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["report", str(log), str(log), "-o", str(log.with_suffix(".html"))]) == 0
    deaths = [line for line in capsys.readouterr().out.splitlines() if line.startswith("deaths")]
    assert deaths[0].split() == ["deaths", "1", "1"]


@pytest.mark.parametrize("text", ["", "not json\n", '{"time": 1}\n'])
def test_what_is_no_event_log_is_refused_with_its_name(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    path = tmp_path / "odd.jsonl"
    path.write_text(text)
    assert main(["report", str(path)]) == 2
    assert capsys.readouterr().err.count("\n") == 1


def test_many_different_counts_are_put_together() -> None:
    assert binned({3: 2, 0: 5}) == {"0": 5, "3": 2}
    many = binned(dict.fromkeys(range(20), 1))
    assert many == {"0": 1, "1": 1, "2-3": 2, "4-7": 4, "8-15": 8, "16-31": 4}


def test_a_log_of_several_runs_says_which_one_is_shown(log: Path) -> None:
    again = [json.loads(line) | {"run": "s"} for line in log.read_text().splitlines()]
    later = [event | {"time": event["time"] + 60} for event in again]
    with log.open("a") as file:
        file.writelines(json.dumps(event) + "\n" for event in later)
    page = log.with_suffix(".html")
    assert main(["report", str(log), "-o", str(page)]) == 0
    assert "run 2 of the 2 in its log" in page.read_text()


def test_a_picture_of_several_runs(log: Path) -> None:
    picture = log.with_suffix(".png")
    assert main(["report", str(log), str(log), "--png", str(picture)]) == 0
    assert picture.read_bytes().startswith(b"\x89PNG")


def test_without_matplotlib_the_picture_is_refused_with_what_to_install(
    log: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert main(["report", str(log), "--png", str(log.with_suffix(".png"))]) == 2
    assert "pip install 'diml[plots]'" in capsys.readouterr().err
