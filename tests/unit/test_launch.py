"""N singletons in place of one world of N are refused, with the command that works."""

from __future__ import annotations

import pytest

from diml.world.launch import refuse_singleton, singleton, speaks


@pytest.mark.parametrize(
    ("env", "size"),
    [
        ({}, 1),
        ({"OMPI_COMM_WORLD_SIZE": "4", "PMIX_RANK": "0"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "1"}, 1),
        # mpirun -n 1 in an allocation of four, its daemon started by srun
        ({"OMPI_COMM_WORLD_SIZE": "1", "SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4"}, 1),
        ({"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7"}, 1),  # a shell of salloc
        ({"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, 1),
        ({"PMI_SIZE": "3"}, 3),
    ],
)
def test_true_worlds_pass(env: dict[str, str], size: int) -> None:
    assert refuse_singleton(env, size) is None


@pytest.mark.parametrize(
    ("env", "cause"),
    [
        ({"SLURM_STEP_NUM_TASKS": "4", "SLURM_NTASKS": "4", "SLURM_PROCID": "1"}, "srun cannot"),
        ({"SLURM_NTASKS": "4", "SLURM_PROCID": "0"}, "a batch script starts one process"),
        ({"PMI_SIZE": "4", "PMI_RANK": "2"}, "another MPI's"),
        ({"OMPI_COMM_WORLD_SIZE": "4"}, "another MPI's"),
    ],
)
def test_singletons_are_refused_with_the_command(env: dict[str, str], cause: str) -> None:
    line = refuse_singleton(env, 1, ["python", "-m", "diml.jobs.mf", "--datafile", "a b"])
    assert line is not None
    assert line.startswith("4 processes were meant, but this one is alone")
    assert cause in line
    assert line.endswith("`mpirun -n 4 python -m diml.jobs.mf --datafile 'a b'`")
    assert "\n" not in line


def test_who_has_no_mpi_launcher() -> None:
    assert singleton({})
    assert singleton({"SLURM_STEP_NUM_TASKS": "4"})
    assert not singleton({"OMPI_COMM_WORLD_SIZE": "1"})
    assert not singleton({"PMI_SIZE": "2"})


def test_who_speaks_for_all() -> None:
    assert speaks({})
    for name in ("OMPI_COMM_WORLD_RANK", "PMI_RANK", "SLURM_PROCID"):
        assert speaks({name: "0"})
        assert not speaks({name: "1"})
    # Each rank's daemon on another node was started by srun with a number of its own.
    assert speaks({"OMPI_COMM_WORLD_RANK": "0", "SLURM_PROCID": "1"})
