"""Collectives and the parameter server in one job: a checkpoint records the clock that it is of."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers.mpi import Finished, run_mpi

PROGRAM = ["-m", "tests.drills.ps_mixed"]
STEPS, WORKERS = 30, 2
TOTAL = sum(step * WORKERS + 1 for step in range(STEPS))


def _holds(finished: Finished) -> None:
    lines = re.findall(r"total (\d+) counted (\d+) of (\d+)", finished.expect(0).stdout)
    assert len(lines) == WORKERS, finished.report()
    for total, counted, of in lines:
        assert int(total) == TOTAL and counted == of, finished.report()


@pytest.mark.parametrize("args", [["--staleness", 0], ["--staleness", 2, "--late"]])
def test_what_a_replacement_does_again_is_not_applied_again(
    args: list[object], tmp_path: Path
) -> None:
    # After clock 11 worker 1 is two clocks beyond the checkpoint of step 9.
    env = {"DIML_SERVERS": "1", "DIML_SPARES": "2", "DIML_DRILL": "1,11,1,0 2,17,0,0"}
    env["DIML_EVENTS"] = str(tmp_path / "events")
    finished = run_mpi(5, PROGRAM, args=args, env=env, timeout_s=60)
    _holds(finished)
    assert (tmp_path / "events").read_text().count('"what":"drill"') == 2


def test_both_are_resumed_at_one_clock(tmp_path: Path) -> None:
    env = {
        "DIML_SERVERS": "1",
        "DIML_CHECKPOINT_DIR": str(tmp_path),
        "DIML_CHECKPOINT_EVERY": "0.01",
    }
    lost = run_mpi(3, PROGRAM, args=["--fail-at", 20], env=env, timeout_s=60)
    assert lost.returncode == 1, lost.report()
    finished = run_mpi(4, PROGRAM, env={**env, "DIML_SERVERS": "2"}, timeout_s=60)
    _holds(finished)
    match = re.search(r"loaded step (\d+), clock (\d+)", finished.stdout)
    assert match and match[1] == match[2] and int(match[1]) >= 6, finished.report()


def test_a_model_that_is_newer_than_the_rows_is_refused(tmp_path: Path) -> None:
    env = {
        "DIML_SERVERS": "1",
        "DIML_CHECKPOINT_DIR": str(tmp_path),
        "DIML_CHECKPOINT_EVERY": "0.01",
    }
    run_mpi(3, PROGRAM, args=["--fail-at", 20], env=env, timeout_s=60)
    for manifest in (tmp_path / "ps").glob("*/rank-*.json"):
        manifest.unlink()
    refused = run_mpi(3, PROGRAM, env=env, timeout_s=60)
    assert refused.returncode == 2, refused.report()
    assert "they do not go together" in refused.stderr, refused.report()
