"""k-means over MPI: it finds planted clouds, and a killed rank changes no bit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.helpers.mpi import run_mpi

JOB = ["-m", "diml.jobs.kmeans"]


def planted(path: Path) -> np.ndarray:  # type: ignore[type-arg]
    """300 points around four corners; returns the corners."""
    rng = np.random.default_rng(0)
    corners = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    np.save(path, corners[rng.integers(0, 4, 300)] + 0.1 * rng.normal(size=(300, 2)))
    return corners


def test_a_killed_rank_changes_no_bit(tmp_path: Path) -> None:
    flags = ["--generate", "20000", "--k", "6", "--tolerance", "0"]
    outputs = []
    for name, processes, drills in (
        ("calm", 3, []),
        ("drill", 5, ["--spares", "2", "--drill", "1,0,7,0", "--drill", "0,2,0,0,inside"]),
    ):
        events = tmp_path / f"{name}.events"
        more = ["--output", str(tmp_path / name), "--seed", "3", "--events", str(events), *drills]
        finished = run_mpi(processes, [*JOB, *flags, *more], timeout_s=120).expect(0)
        assert "iterations, objective" in finished.stdout
        assert events.read_text().count('"what":"drill"') == len(drills) // 3
        outputs.append([(tmp_path / f"{name}.{end}").read_bytes() for end in ("C", "labels")])
    assert outputs[0] == outputs[1]


def test_planted_corners_are_found(tmp_path: Path) -> None:
    corners = planted(tmp_path / "points.npy")
    flags = ["--datafile", str(tmp_path / "points.npy"), "--k", "4"]
    run_mpi(2, [*JOB, *flags, "--output", str(tmp_path / "out")], timeout_s=120).expect(0)
    centres = np.loadtxt(tmp_path / "out.C")
    distances = np.abs(centres[:, None] - corners).sum(axis=2).min(axis=0)
    assert distances.max() < 0.1
    assert len(np.loadtxt(tmp_path / "out.labels")) == 300


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--datafile", "absent.npy"], "absent.npy"),
        (["--generate", "3", "--k", "5"], "only 3 rows"),
        ([], "either --datafile or --generate"),
        (["--generate", "3", "--k", "none"], "--k"),
    ],
)
def test_bad_input_is_one_line(flags: list[str], words: str) -> None:
    finished = run_mpi(2, [*JOB, *flags], timeout_s=60).expect(2)
    assert words in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1, finished.report()
