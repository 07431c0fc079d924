"""The claim on a checkpoint directory: one job's at a time, and nobody's once its processes die."""

from __future__ import annotations

import multiprocessing
import signal
from pathlib import Path
from typing import Any

import pytest

from diml.errors import Misuse
from diml.world import claim
from diml.world.claim import Claim


def _hold(directory: Path, job: str, here: Any) -> None:
    held = Claim(directory, job)
    here.send(True)
    here.recv()  # until this process is killed
    held.release()


def test_all_processes_of_one_job_hold_it_and_no_other_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(claim, "_PATIENCE_S", 0.1)
    fork = multiprocessing.get_context("fork")
    members = []
    for _ in range(5):
        there, here = fork.Pipe()
        members.append((fork.Process(target=_hold, args=(tmp_path, "one", here)), there))
    for process, _ in members:
        process.start()
    assert all(there.recv() for _, there in members)
    with pytest.raises(Misuse, match=r"another job keeps its checkpoints there now \(process \d+"):
        Claim(tmp_path, "two")
    for process, _ in members:
        process.kill()
        process.join(10)
        assert process.exitcode == -signal.SIGKILL
    # What the dead have left behind is in nobody's way.
    Claim(tmp_path, "two").release()
    Claim(tmp_path, "three").release()


def test_where_nothing_can_be_claimed_others_say_what_is_wrong(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    Claim(tmp_path / "file", "one").release()
