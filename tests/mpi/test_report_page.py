"""The report of a real, drilled run: what it tells of the death, and how it looks in a browser."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from diml.cli import main
from diml.events import FIELDS, FIXED, read_events
from tests.helpers import browser
from tests.helpers.mpi import run_mpi

SCREENS = [(1000, False), (360, False), (360, True)]


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Matrix factorization on two workers and a server; worker 1 is killed, a spare takes over."""
    path = tmp_path_factory.mktemp("report") / "run.jsonl"
    words = ["--generate", "2000x1500x300000", "--K", "4", "--num_iterations", "8"]
    words += ["--update", "adagrad"]
    words += ["--servers", "1", "--spares", "1", "--drill", "1,6,0,0", "--events", path, "--quiet"]
    run_mpi(4, ["-m", "diml.jobs.mf"], args=words, timeout_s=150).expect(0)
    return path


def test_every_line_follows_the_schema(log: Path) -> None:
    events = read_events(log)
    for event in events:
        assert event["what"] in FIELDS, event
        assert tuple(event)[: len(FIXED)] == FIXED
        assert set(FIELDS[event["what"]]) <= set(event), event
    assert {"start", "progress", "traffic", "drill", "repair", "leave"} <= {
        e["what"] for e in events
    }
    # Only one rank tells how far the job is.
    assert {(e["role"], e["rank"]) for e in events if e["what"] == "progress"} == {("worker", 0)}


def test_the_death_the_repair_and_its_times_are_told(
    log: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    page, picture = log.with_suffix(".html"), log.with_suffix(".png")
    assert main(["report", str(log), "-o", str(page), "--png", str(picture)]) == 0
    printed = capsys.readouterr().out
    match = re.search(
        r"Worker 1 died at [\d.]+ s \(a drill at version 6, call 0, entry\)\. .*?"
        r"The repair took ([\d.]+) (ms|s) \((.*?)\)\. A spare \(process 3\) took the place",
        printed,
    )
    assert match, printed
    took = float(match[1]) / (1000 if match[2] == "ms" else 1)
    repairs = [e for e in read_events(log) if e["what"] == "repair"]
    assert took == pytest.approx(max(e["seconds"] for e in repairs), rel=0.01)
    assert set(re.findall(r"(\w+) [\d.]+ m?s", match[3])) == set(repairs[0]["phases"])
    assert match[0] in page.read_text()
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 20_000


@pytest.mark.skipif(browser.find() is None, reason="needs Chromium")
@pytest.mark.parametrize(("width", "dark"), SCREENS)
def test_it_can_be_read_on_any_screen(width: int, dark: bool, log: Path, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    assert main(["report", str(log), "-o", str(page)]) == 0
    picture = tmp_path / "page.png"
    seen = browser.look(page, tmp_path, width=width, dark=dark, picture=picture)
    assert seen["title"] == "diml.jobs.mf - DiML report"
    assert seen["wide"] <= seen["width"], "it has to be scrolled sideways"
    assert seen["broken"] == 0
    titles = [picture["title"] for picture in seen["pictures"]]
    assert titles[0] == "Who lived when" and "train RMSE" in titles and "Bytes sent" in titles
    assert browser.contrast(seen["ink"], seen["ground"]) >= 7
    light = browser.contrast(seen["ground"], "rgb(0, 0, 0)") > 10
    assert light is not dark
    for drawn in seen["pictures"]:
        _readable(drawn)
    assert picture.read_bytes().startswith(b"\x89PNG") and picture.stat().st_size > 30_000


def _readable(drawn: dict[str, Any]) -> None:
    """All of a plot's letters are inside, large enough, and apart from their ground."""

    def inside(inner: Sequence[float], outer: Sequence[float]) -> bool:
        left, top, right, bottom = (a - b for a, b in zip(inner, outer, strict=True))
        return left >= -1 and top >= -1 and right <= 1 and bottom <= 1

    outside = [text for text, box in drawn["texts"] if not inside(box, drawn["box"])]
    assert not outside, (drawn["title"], outside)
    assert drawn["letters"] >= 8
    assert browser.contrast(drawn["ink"], drawn["card"]) >= 4.5
