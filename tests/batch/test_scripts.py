"""The batch scripts in jobs/: what the renderer gives, valid shell, flags that the jobs have."""

from __future__ import annotations

import importlib
import shlex
import subprocess
import sys
from pathlib import Path
from typing import get_args

import pytest

from diml.world import doctor
from diml.world.batch import JOBS, SUFFIX, Job, System, script
from tests.helpers.mpi import CHECKOUT

CASES = [(system, job) for system in get_args(System) for job in JOBS]


def path_of(system: System, job: Job) -> Path:
    return CHECKOUT / "jobs" / system / f"{job.name}.{SUFFIX[system]}"


@pytest.mark.parametrize(("system", "job"), CASES, ids=lambda case: getattr(case, "name", case))
def test_the_files_are_what_is_rendered(system: System, job: Job) -> None:
    """After a change on purpose: `python -m tests.batch.test_scripts` writes them."""
    path = path_of(system, job)
    assert path.read_text() == script(system, job)
    subprocess.run(["bash", "-n", str(path)], check=True)
    assert max(len(line) for line in path.read_text().splitlines()) <= 100
    assert path.read_text().count("\n") < 50


def test_there_are_no_others() -> None:
    found = {path for path in (CHECKOUT / "jobs").rglob("*") if path.is_file()}
    assert found == {path_of(system, job) for system, job in CASES}


@pytest.mark.parametrize("job", JOBS, ids=lambda job: str(job.name))
def test_the_jobs_know_their_flags(job: Job, tmp_path: Path) -> None:
    words = shlex.split(" ".join(job.command))
    module = importlib.import_module(words[0])
    assert callable(module.main)
    # A missing file is found after all flags were understood; --help would stop before.
    command = [sys.executable, "-m", *words, "--checkpoint-dir", str(tmp_path / "c"), "--bogus"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, timeout=240)
    assert done.returncode == 2
    assert "unrecognized arguments: --bogus (see" in done.stderr, done.stderr


@pytest.mark.parametrize(("status", "wanted"), [(0, 0), (75, 99), (1, 1)])
def test_the_script_of_sge_says_99_for_again(tmp_path: Path, status: int, wanted: int) -> None:
    assert run_script("sge", tmp_path, f"exit {status}") == wanted


def run_script(system: System, folder: Path, diml: str, **env: str) -> int:
    """Run a script where `diml` is a script of the test's; its exit status."""
    (folder / "bin").mkdir()
    (folder / "bin" / "activate").write_text(f'PATH="{folder}/bin:$PATH"\n')
    again = f'echo "$@" > "{folder}/requeued"'
    # The clock of `timeout` is the test's.
    clock = 'exec /usr/bin/timeout "${@:1:4}" "${SOON:-600}" "${@:6}"'
    programs = {"diml": diml, "scontrol": again, "qsub": again, "timeout": clock}
    for name, text in programs.items():
        (folder / "bin" / name).write_text(f"#!/bin/bash\n{text}\n")
        (folder / "bin" / name).chmod(0o700)
    env |= {"PATH": "/usr/bin:/bin", "DIML_VENV": str(folder), "SLURM_JOB_ID": "7"}
    path = path_of(system, JOBS[-1])
    return subprocess.run(["bash", str(path)], env=env, cwd=folder, timeout=240).returncode


def stopped_by(signal: str, level: str = "$PPID") -> str:
    """A script that stands for diml: has its parent signalled, as a batch system does, once that
    has come to its trap, and waits to be told."""
    caught = "$(awk '/SigCgt/ {print $2}' /proc/$script/status)"
    return (
        f"trap 'exit 75' USR1; script={level}; until (( 0x{caught} & 0x4000 )); do sleep 0.1; done;"
        f" kill -{signal} $script; for i in {{1..600}}; do sleep 0.1; done; exit 3"
    )


def test_the_script_of_slurm_passes_usr1_on_and_requeues(tmp_path: Path) -> None:
    assert run_script("slurm", tmp_path, stopped_by("USR1")) == 0
    assert (tmp_path / "requeued").read_text() == "requeue 7\n"


# Behind `timeout`, the script is the parent of the parent.
_ABOVE = "$(awk '/PPid/ {print $2}' /proc/$PPID/status)"


@pytest.mark.parametrize(("system", "level"), [("slurm", "$PPID"), ("pbs", _ABOVE)])
def test_a_cancelled_job_does_not_come_back(tmp_path: Path, system: System, level: str) -> None:
    folder = tmp_path / "of a user"
    folder.mkdir()
    status = run_script(system, folder, stopped_by("TERM", level), PBS_O_WORKDIR=str(folder))
    assert status == 75 and not (folder / "requeued").exists()


def test_the_script_of_pbs_is_warned_and_submitted_again_with_its_variables(tmp_path: Path) -> None:
    folder = tmp_path / "of a user"
    folder.mkdir()
    wait = "trap 'exit 75' USR1; for i in {1..600}; do sleep 0.1; done; exit 3"
    # Time for a shell to come to its trap, on a busy machine too.
    found = {"PBS_O_WORKDIR": str(folder), "DIML_CHECKPOINTS": "/local/of mine", "SOON": "3"}
    assert run_script("pbs", folder, wait, **found) == 0
    words = (folder / "requeued").read_text().split()
    assert words == ["-v", "DIML_CHECKPOINTS,DIML_VENV", "jobs/pbs/drill.pbs"]


def test_the_doctor_prints_a_script_that_fits_the_allocation() -> None:
    env = {"SLURM_JOB_ID": "17", "SLURM_JOB_NODELIST": "n[1-3]", "SLURM_TASKS_PER_NODE": "4(x3)"}
    text = doctor.fitting_script(env)
    assert "#SBATCH --nodes=3\n#SBATCH --ntasks-per-node=4\n" in text
    assert "diml run -n 10 --spares 1 --servers 1" in text
    first = next(doctor.examine_cluster(env))
    assert (
        str(first) == "ok      allocation: Slurm job 17: n1 (4 slots), n2 (4 slots), n3 (4 slots)"
    )


def test_the_doctor_prints_a_script_without_an_allocation() -> None:
    assert doctor.fitting_script({}).startswith("#!/bin/bash\n")
    assert "none: " in str(next(doctor.examine_cluster({})))


if __name__ == "__main__":
    for system, job in CASES:
        path_of(system, job).parent.mkdir(parents=True, exist_ok=True)
        path_of(system, job).write_text(script(system, job))
