"""The comparison of the three ways: what its cells say of an event log."""

from __future__ import annotations

from typing import Any

import pytest

from diml.errors import Misuse
from diml.jobs import logistic
from diml.jobs.logistic_compare import WAYS, Cells, cells_of, steps_to, table


def _event(time: float, what: str, run: str = "a", uid: int = 0, **fields: Any) -> dict[str, Any]:
    return {"time": 50 + time, "run": run, "uid": uid, "what": what, **fields}


def _progress(time: float, done: int, objective: float, run: str = "a") -> dict[str, Any]:
    values = {"objective": objective, "test accuracy": 0.8 + 0.01 * done}
    return _event(time, "progress", run, done=done, values=values)


def _work(time: float, uid: int, seconds: float, waited_s: float, run: str = "a") -> dict[str, Any]:
    return _event(time, "work", run, uid, seconds=seconds, waited_s=waited_s)


RESTARTED = [
    _progress(0.0, 0, 0.7),
    _work(0.0, 0, 0.5, 0.1),
    _progress(1.0, 1, 0.5),
    _work(1.0, 0, 1.5, 0.6),
    _work(1.0, 1, 1.5, 0.9),
    _event(1.0, "traffic", uid=0, by="collectives", wire_bytes=10),
    _event(1.1, "traffic", uid=0, by="collectives", wire_bytes=30),
    _event(1.1, "traffic", uid=0, by="servers", wire_bytes=5),
    _event(1.2, "drill", uid=1),
    # Started again: another run in the same log.
    _progress(6.0, 1, 0.5, run="b"),
    _progress(8.0, 2, 0.3, run="b"),
    _progress(10.0, 3, 0.2, run="b"),
    _work(10.0, 0, 4.0, 1.0, run="b"),
    _work(10.0, 1, 4.0, 2.0, run="b"),
    _event(10.1, "traffic", "b", uid=0, by="collectives", wire_bytes=100),
]


def test_time_bytes_and_waiting_go_on_through_a_restart() -> None:
    cells = cells_of(list(reversed(RESTARTED)), target=0.3, workers=2)
    assert cells.seconds == pytest.approx(8.0)
    assert cells.nbytes == 30 + 5 + 100
    # Busy: 0.9 + 0.6 before, 3 + 2 after, of 2 x 10 s.
    assert cells.waiting == pytest.approx(1 - 6.5 / 20)
    assert cells.accuracy == pytest.approx(0.83)
    assert (cells.best, cells.deaths) == (0.2, 1)


def test_a_target_that_is_not_reached_says_so() -> None:
    cells = cells_of(RESTARTED, target=0.1, workers=2)
    assert cells.seconds is None
    text = table([(WAYS[0], cells, cells, "iteration 1")], 0.1, "x", logistic.Path("d"))
    assert text.count("missed") == 2


def test_the_first_step_at_the_target() -> None:
    assert steps_to(RESTARTED, 0.5) == 1
    assert steps_to(RESTARTED, 0.1) is None


def test_a_row_names_its_logs() -> None:
    cells = Cells(1.25, 2_000_000, 0.5, 0.85, 0.3, 1)
    lines = table([(way, cells, cells, "x") for way in WAYS], 0.3, "about", logistic.Path("d"))
    for way in WAYS:
        row = next(line for line in lines.splitlines() if line.startswith(way.words))
        assert row.split()[-2:] == [f"{way.name}.jsonl", f"{way.name}-killed.jsonl"]
        assert "1.25" in row and "50 %" in row and "0.8500" in row


@pytest.mark.parametrize(
    ("extra", "env", "words"),
    [
        (["--workers", "1"], {}, "one of them is killed"),
        ([], {"OMPI_COMM_WORLD_SIZE": "2", "PMIX_RANK": "0"}, "without mpirun"),
        ([], {}, "no such file"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    extra: list[str], env: dict[str, str], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(Misuse, match=words):
        logistic.main(["--compare", "--datafile", "absent.svm", *extra])
