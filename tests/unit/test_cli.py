"""The command `diml`, and the block that it writes into MPI's parameter files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from diml.cli import main
from diml.errors import Misuse
from diml.world import doctor, mpi_params
from diml.world.doctor import Finding


def test_an_unknown_word_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    for words in (["operate"], ["doctor", "--cure"], []):
        assert main(words) == 2
        printed = capsys.readouterr()
        assert printed.err.startswith("diml: ")
        assert printed.err.count("\n") == 1
        assert printed.out == ""


@pytest.mark.parametrize(("fine", "status", "last"), [(True, 0, "all fine"), (False, 1, "1 to")])
def test_doctor_says_what_it_found_and_counts(
    fine: bool,
    status: int,
    last: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    findings = [Finding("this", "is so"), Finding("that", "is not", fine, "" if fine else "do it")]
    monkeypatch.setattr(doctor, "examine", lambda env: iter(findings))
    assert main(["doctor"]) == status
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "ok      this: is so"
    assert lines[-1].startswith(last)
    assert ("        -> do it" in lines) != fine


def test_settings_are_written_once_and_the_rest_stays(tmp_path: Path) -> None:
    path = tmp_path / "etc" / "openmpi-mca-params.conf"
    path.parent.mkdir()
    path.write_text("# a site's own\nbtl_tcp_if_include = eth1\ncoll = ^ucc\n")
    before = mpi_params.missing(tmp_path, {})
    assert "OMPI_MCA_mpi_ft_enable=1" in before
    assert any(line.startswith("OMPI_MCA_coll=") for line in before)
    assert len(mpi_params.write(tmp_path)) == 2
    written = path.read_text()
    assert written.startswith("# a site's own\nbtl_tcp_if_include = eth1\ncoll = ^ucc\n")
    assert mpi_params.missing(tmp_path, {}) == []
    assert mpi_params.write(tmp_path) == []
    assert path.read_text() == written


def test_an_older_block_is_replaced() -> None:
    old = mpi_params.with_block("first = 1\n", {"a": "1"}) + "last = 2\n"
    new = mpi_params.with_block(old, {"b": "2"})
    assert "a = 1" not in new
    for kept in ("first = 1", "last = 2", "b = 2"):
        assert new.count(kept) == 1
    assert mpi_params.with_block(new, {"b": "2"}) == new


def test_a_variable_wins_over_the_file(tmp_path: Path) -> None:
    mpi_params.write(tmp_path)
    off = {"OMPI_MCA_mpi_ft_enable": "0"}
    assert mpi_params.missing(tmp_path, off) == ["OMPI_MCA_mpi_ft_enable=1"]
    assert mpi_params.missing(tmp_path / "absent", mpi_params.as_environment()) == []


def test_a_place_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "etc").write_text("a file where a directory should be")
    with pytest.raises(Misuse, match=r"etc/openmpi-mca-params.conf"):
        mpi_params.write(tmp_path)


def test_a_sites_mpi_is_not_written_to(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(doctor, "find_launcher", lambda: Path("/opt/site/bin/mpirun"))
    assert doctor.settings_prefix() is None
    assert main(["doctor", "--fix"]) == 2
    assert "this environment's own MPI" in capsys.readouterr().err
    found = {finding.topic: finding for finding in doctor._mpi(doctor.find_launcher(), {})}
    assert not found["settings"].fine
    assert found["settings"].remedy.startswith("`export OMPI_MCA_mpi_ft_enable=1 ")
    assert not found["MPI"].fine


def test_what_is_missing_comes_with_a_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "find_launcher", lambda: None)
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    env = {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4", "TMPDIR": "/proc"}
    findings = {finding.topic: finding for finding in doctor.examine(env)}
    assert "fault tolerance" not in findings
    for topic in ("MPI", "launcher", "shared memory", "temporary files", "compiled kernels"):
        assert not findings[topic].fine
        assert findings[topic].remedy


def test_a_batch_script_of_slurm_is_a_good_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its shell has a rank and the number of tasks, though no srun has started it."""
    monkeypatch.setattr(doctor, "find_launcher", lambda: None)
    env = {"SLURM_JOB_ID": "7", "SLURM_PROCID": "0", "SLURM_NTASKS": "4"}
    (launcher,) = (f for f in doctor.examine(env) if f.topic == "launcher")
    assert launcher.fine and launcher.text.startswith("Slurm job 7")


def test_other_hosts_of_sge_are_reached_by_qrsh(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "hosts").write_text("n1 4 all.q UNDEFINED\nn2 4 all.q UNDEFINED\n")
    env = {"PE_HOSTFILE": str(tmp_path / "hosts"), "JOB_ID": "3"}
    monkeypatch.setenv("PATH", str(tmp_path))
    assert "other hosts" in [finding.topic for finding in doctor.examine_cluster(env)]
    (tmp_path / "qrsh").touch(0o700)
    assert "other hosts" not in [finding.topic for finding in doctor.examine_cluster(env)]


def test_messages_of_one_fragment_go_at_once_unless_the_user_says_otherwise() -> None:
    env = {"HOME": "here"}
    with mpi_params.eager(env):
        assert env["OMPI_MCA_btl_sm_eager_limit"] == "32768"
        assert env["OMPI_MCA_mpi_initial_errhandler"] == "mpi_errors_return"
        assert env["OMPI_MCA_btl_sm_flags"] == "send"
    assert env == {"HOME": "here"}
    with mpi_params.eager(env := {"OMPI_MCA_btl_sm_eager_limit": "4096"}):
        assert env["OMPI_MCA_btl_sm_eager_limit"] == "4096"
    assert env == {"OMPI_MCA_btl_sm_eager_limit": "4096"}


@pytest.mark.parametrize("said", [{"OMPI_MCA_btl": "tcp,self"}, {"PMIX_RANK": "0"}])
def test_only_a_process_that_is_alone_does_without_transports(said: dict[str, str]) -> None:
    env: dict[str, str] = {}
    with mpi_params.alone(env):
        assert env == {"OMPI_MCA_btl": "self"}
    assert env == {}
    with mpi_params.alone(env := dict(said)):
        assert env == said
    assert env == said


@pytest.mark.parametrize("words", [["doc", "coming-from"], ["-m", "diml.jobs.drill"]])
def test_a_stdout_that_takes_nothing_is_one_line(words: list[str]) -> None:
    command = words if words[0] == "-m" else ["-m", "diml.cli", *words]
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, *command], stdout=full, stderr=subprocess.PIPE, text=True
        )
    assert done.returncode == 1
    assert done.stderr == "diml: cannot write the output: No space left on device\n"


@pytest.mark.parametrize("unbuffered", [[], ["-u"]])
def test_stdout_is_told_from_a_file_of_the_program_that_meets_a_full_disk(
    unbuffered: list[str],
) -> None:
    program = (
        "import errno, sys\n"
        "from diml.ending import output_refused\n"
        "print('mine')\n"
        "print(output_refused(OSError(errno.ENOSPC, 'full')), file=sys.stderr)\n"
    )
    done = subprocess.run(
        [sys.executable, *unbuffered, "-c", program], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("mine\n", "None\n")
