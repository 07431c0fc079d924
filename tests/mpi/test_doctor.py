"""`diml doctor` tries fault tolerance for real: on here, and seen to be off where it is off."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from diml.world import trial
from diml.world.doctor import try_fault_tolerance
from tests.helpers.mpi import run_mpi


def test_doctor_finds_this_environment_fine() -> None:
    done = run_mpi(None, ["-m", "diml.cli", "doctor"], timeout_s=90).expect(0)
    lines = done.stdout.splitlines()
    assert lines[-1] == "all fine"
    assert any("fault tolerance: on (tried: three ranks, one killed" in line for line in lines)
    assert done.stderr == ""


def test_the_trial_ends_well_where_ranks_do_not_share_memory() -> None:
    """Then each may hear of the other's end first; with eight tries it happens to some."""
    for _ in range(8):
        done = run_mpi(3, ["-m", trial.__name__], env={"OMPI_MCA_btl": "tcp,self"}, timeout_s=60)
        assert "recovered in" in done.expect(0).stdout


def test_doctor_sees_that_fault_tolerance_is_off() -> None:
    env = {"OMPI_MCA_mpi_ft_enable": "0", "PRTE_MCA_state_base_recoverable": "0"}
    done = run_mpi(None, ["-m", "diml.cli", "doctor"], env=env, timeout_s=90).expect(1)
    text = done.stdout
    assert "PROBLEM fault tolerance: off (tried: three ranks, one killed" in text
    assert "PROBLEM settings: 2 for fault tolerance missing" in text
    assert "export OMPI_MCA_mpi_ft_enable=1 PRTE_MCA_state_base_recoverable=1" in text
    assert "2 to mend" in text


def _fake_launcher(path: Path, script: str) -> Path:
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o700)
    return path


def test_it_tells_the_error_of_a_traceback(tmp_path: Path) -> None:
    script = "printf '%s\\n' ------- 'Traceback (most recent call last):' '  File x' 'E: why' >&2"
    finding = try_fault_tolerance(_fake_launcher(tmp_path / "mpirun", script), {})
    assert not finding.fine and "'E: why'" in finding.text


def test_a_launcher_that_starts_singletons_is_seen(tmp_path: Path) -> None:
    launcher = _fake_launcher(tmp_path / "mpirun", 'shift 2; exec "$@"')
    finding = try_fault_tolerance(launcher, dict(os.environ))
    assert not finding.fine
    assert "mpirun returned 3, 'the world has 1 ranks in place of 3'" in finding.text


def test_a_trial_that_hangs_ends_at_its_deadline(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(trial, "DEADLINE_S", -4.5)
    finding = try_fault_tolerance(_fake_launcher(tmp_path / "mpirun", "exec sleep 600"), {})
    assert not finding.fine
    assert "the others hang" in finding.text
