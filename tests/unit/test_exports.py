"""What TensorBoard and Prometheus are given of a run."""

from __future__ import annotations

import re
import sys
from pathlib import Path
from typing import Any

import pytest

from diml.errors import Misuse
from diml.events import EventLog, read_events
from diml.exports import Prometheus, sinks_of


def _progress(done: int, **values: Any) -> dict[str, Any]:
    return {"what": "progress", "run": "r", "time": 5.5, "done": done, "total": 9, "values": values}


def _samples(path: Path) -> dict[str, float]:
    """What Prometheus's text parser would take from the file."""
    samples = {}
    for line in path.read_text().splitlines():
        if line.startswith("#"):
            assert re.fullmatch(r"# (HELP|TYPE) diml_[a-z_]+ .+", line)
            continue
        match = re.fullmatch(r'(diml_[a-z_]+\{[a-z]+="(?:[^"\\]|\\.)*".*\}) (\S+)', line)
        assert match, line
        samples[match[1]] = float(match[2])
    return samples


def test_prometheus_gets_the_newest_numbers_and_the_repairs(tmp_path: Path) -> None:
    now, path = 0.0, tmp_path / "run.prom"
    sink = Prometheus(path, clock=lambda: now)
    sink({"what": "repair", "seconds": 0.25})
    assert not path.exists(), "only the one that tells the progress writes"
    sink(_progress(1, train_loss=0.5, rate="3 M/s"))
    sink(_progress(2, train_loss=0.4))
    assert _samples(path)['diml_done_steps{run="r"}'] == 1, "at most once a second"
    now = 2.0
    sink(_progress(3, train_loss=0.25, odd='a "b"'))
    assert _samples(path) == {
        'diml_done_steps{run="r"}': 3,
        'diml_total_steps{run="r"}': 9,
        'diml_progress_timestamp_seconds{run="r"}': 5.5,
        'diml_repairs_total{run="r"}': 1,
        'diml_repair_seconds_total{run="r"}': 0.25,
        'diml_value{run="r",name="train loss"}': 0.25,
    }
    sink(_progress(9))
    assert _samples(path)['diml_done_steps{run="r"}'] == 9, "the last one always"
    assert list(tmp_path.iterdir()) == [path]


def test_tensorboard_gets_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboardX")
    log = EventLog(None, run="r", uid=0, sinks=sinks_of(tmp_path / "boards", None))
    log("progress", done=4, total=9, values={"train_loss": 0.5, "rate": "3 M/s"})
    log("repair", lost=[1], seconds=0.25, phases={})
    log("leave")
    (board,) = (tmp_path / "boards").iterdir()
    data = board.read_bytes()
    assert b"train loss" in data and b"repair seconds" in data and b"rate" not in data


def test_a_worker_that_tells_nothing_writes_nothing(tmp_path: Path) -> None:
    log = EventLog(None, run="r", uid=0, sinks=sinks_of(tmp_path / "b", tmp_path / "m.prom"))
    log("repair", lost=[1], seconds=0.25, phases={})
    log("leave")
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(Misuse, match=r"--prometheus .*absent/m.prom: no such directory"):
        sinks_of(None, tmp_path / "absent" / "m.prom")
    monkeypatch.setitem(sys.modules, "tensorboardX", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(Misuse, match=r"pip install 'diml\[tensorboard\]'"):
        sinks_of(tmp_path, None)


def test_a_disk_that_refuses_ends_the_export_not_the_run(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "m.prom.part").mkdir()
    sinks = sinks_of(None, tmp_path / "m.prom")
    log = EventLog(tmp_path / "run.jsonl", run="r", uid=0, sinks=sinks)
    for done in (8, 9):
        log("progress", done=done, total=9, values={})
    assert capsys.readouterr().err == "diml: --prometheus ends here: Is a directory\n"
    assert len(read_events(tmp_path / "run.jsonl")) == 2


def test_a_place_that_cannot_be_is_refused_at_the_start(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for tensorboard in (file, file / "below"):
        with pytest.raises(Misuse, match="no directory can be made"):
            sinks_of(tensorboard, None)
    with pytest.raises(Misuse, match="no ordinary file"):
        sinks_of(None, tmp_path)
    assert len(sinks_of(tmp_path / "new" / "one", tmp_path / "run.prom")) == 2
