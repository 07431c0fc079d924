"""The event log: its schema, its lines under several writers, and what a damaged one says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from diml.errors import Misuse
from diml.events import FIXED, EventLog, read_events
from tests.helpers.mpi import CHECKOUT


def test_every_line_has_the_fixed_fields(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    log = EventLog(path, run="r1", uid=4)
    log.stand(role="worker", rank=2, incarnation=1, epoch=3)
    before = time.time()
    log("repair", phase_ms=np.float32(1.5), dead=np.array([1, 2]), loss=float("nan"), where=path)
    (event,) = read_events(path)
    assert tuple(event)[: len(FIXED)] == FIXED
    assert before <= event["time"] <= time.time()
    told = [event[name] for name in FIXED if name not in ("time", "host")]
    assert told == ["r1", 4, "worker", 2, 1, 3, os.getpid(), "repair"]
    assert event["phase_ms"] == 1.5
    assert event["dead"] == [1, 2]
    assert event["loss"] is None
    assert event["where"] == str(path)
    assert path.stat().st_mode & 0o777 == 0o600


_WRITER = """
import sys
from pathlib import Path
from diml.events import EventLog
log = EventLog(Path(sys.argv[1]), run="r", uid=int(sys.argv[2]))
for number in range(200):
    log("tick", number=number, padding="x" * 500)
"""


def test_lines_of_several_processes_do_not_mix(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    command = [sys.executable, "-c", _WRITER, str(path)]
    writers = [subprocess.Popen([*command, str(uid)], cwd=CHECKOUT) for uid in range(3)]
    assert [writer.wait(60) for writer in writers] == [0, 0, 0]
    events = read_events(path)
    for uid in range(3):
        assert [e["number"] for e in events if e["uid"] == uid] == list(range(200))


def test_without_a_path_nothing_is_written(tmp_path: Path) -> None:
    log = EventLog(None, run="r", uid=0)
    log("start")
    log.close()
    assert list(tmp_path.iterdir()) == []


def test_a_file_that_cannot_be_written_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Misuse, match=r"event log .*no/run.jsonl: No such file or directory"):
        EventLog(tmp_path / "no" / "run.jsonl", run="r", uid=0)


def test_a_log_that_another_thread_closes_meanwhile_drops_the_event(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = EventLog(tmp_path / "run.jsonl", run="r", uid=0)

    def dumps(event: object, **how: Any) -> str:
        log.close()
        return "{}"

    monkeypatch.setattr(json, "dumps", dumps)
    log("start")
    assert (tmp_path / "run.jsonl").read_bytes() == b""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_ends_the_log_not_the_run(capsys: pytest.CaptureFixture[str]) -> None:
    log = EventLog(Path("/dev/full"), run="r", uid=0)
    log("start")
    log("start")
    assert capsys.readouterr().err == "diml: the event log ends here: No space left on device\n"


def test_a_torn_last_line_is_left_out_and_other_damage_named(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    EventLog(path, run="r", uid=0)("start")
    whole = path.read_bytes()
    path.write_bytes(whole + whole[:20])
    assert len(read_events(path)) == 1
    path.write_bytes(whole + b"{]\n")
    with pytest.raises(Misuse, match=r"run.jsonl, line 2: not JSON"):
        read_events(path)
    path.write_bytes(whole + json.dumps({"time": 1}).encode() + b"\n")
    with pytest.raises(Misuse, match=r"line 2: no 'run'"):
        read_events(path)
    with pytest.raises(Misuse, match="absent"):
        read_events(tmp_path / "absent")


def test_a_file_that_is_no_log_is_left_as_it_is(tmp_path: Path) -> None:
    path = tmp_path / "ratings.txt"
    path.write_text("0 0 1\n")
    with pytest.raises(Misuse, match="no event log"):
        EventLog(path, run="a", uid=0)
    assert path.read_text() == "0 0 1\n"
