"""`--compare` on a small set: every cell of the table is that of the logs beside it."""

from __future__ import annotations

from pathlib import Path

import pytest

from diml.events import read_events
from diml.jobs import logistic, logistic_compare
from diml.jobs.logistic_compare import cells_of
from tests.helpers.mpi import CHECKOUT
from tests.mpi.test_logistic_allreduce import write_examples


def test_the_table_is_that_of_its_logs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    data, out = write_examples(tmp_path / "x.svm"), tmp_path / "out"
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT", "1")
    monkeypatch.setenv("OMPI_ALLOW_RUN_AS_ROOT_CONFIRM", "1")
    monkeypatch.setenv("PYTHONPATH", str(CHECKOUT))
    ways = [way for way in logistic_compare.WAYS if way.name in ("mpi", "rabit", "ps-sync")]
    monkeypatch.setattr(logistic_compare, "WAYS", ways)
    words = ["--compare", str(out), "--datafile", str(data), "--test", str(data), "--quiet"]
    words += ["--workers", "2", "--l2", "1e-3", "--batch_size", "50", "--target", "0.05"]
    assert logistic.main(words) == 0
    text = capsys.readouterr().out
    assert (out / "table.txt").read_text() == text
    target = float(text.split("to objective")[1].split()[0])
    for way in ways:
        row = next(line for line in text.splitlines() if line.startswith(way.words))
        cells = row[len(way.words) :].replace(" %", "").split()
        shown, logs = [float(cell) for cell in cells[:7]], cells[7:]
        read = [cells_of(read_events(out / log), target + 1e-6, 2) for log in logs]
        for run, (seconds, megabytes, waiting) in zip(read, (shown[:3], shown[3:6]), strict=True):
            assert run.seconds == pytest.approx(seconds, rel=0.01)
            assert run.nbytes / 1e6 == pytest.approx(megabytes, rel=0.01)
            assert run.waiting is not None
            assert 100 * run.waiting == pytest.approx(waiting, abs=0.51)
        assert read[1].accuracy == pytest.approx(shown[6], abs=1e-4)
        assert [run.deaths for run in read] == [0, 1]
    started = {name: read_events(out / f"{name}-killed.jsonl") for name in ("mpi", "rabit")}
    assert {name: len({e["run"] for e in log}) for name, log in started.items()} == {
        "mpi": 2,
        "rabit": 1,
    }
