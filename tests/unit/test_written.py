"""Files appear whole or not at all, and a disk that is full is told of in one line."""

from __future__ import annotations

import resource
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from diml.data.written import Hdf5, whole
from diml.errors import Misuse
from diml.jobs.logistic_model import Model, write_model
from diml.jobs.mf_files import write_factors

ROWS = np.random.default_rng(0).normal(size=(5000, 8))


@pytest.fixture
def short_disk() -> Iterator[None]:
    """Files may have 100 kB: beyond that a write fails, as it does on a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
        signal.signal(signal.SIGXFSZ, handler)


@pytest.mark.usefixtures("short_disk")
@pytest.mark.parametrize("name", ["m", "m.npz", "m.h5"])
@pytest.mark.parametrize("kind", ["factors", "logistic"])
def test_a_model_that_the_disk_refuses_leaves_nothing(
    tmp_path: Path, name: str, kind: str, capfd: pytest.CaptureFixture[str]
) -> None:
    write: dict[str, Callable[[str], None]] = {
        "factors": lambda where: write_factors(where, [ROWS], [ROWS]),
        "logistic": lambda where: write_model(where, Model(ROWS.ravel())),
    }
    with pytest.raises(Misuse, match=r"m[.\w]*.*: cannot write it: File too large"):
        write[kind](str(tmp_path / name))
    assert list(tmp_path.iterdir()) == []
    said = capfd.readouterr()
    assert said.out + said.err == ""


def test_two_files_appear_together(tmp_path: Path) -> None:
    """L of one model beside R of another would be read as one."""
    old = tmp_path / "m.L"
    old.write_text("old")
    right = np.array([["no number"]])
    with pytest.raises(TypeError):
        write_factors(str(tmp_path / "m"), [ROWS], [right])
    assert old.read_text() == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["m.L"]


def test_what_is_no_error_of_the_disk_is_not_called_that(tmp_path: Path) -> None:
    path = tmp_path / "x.h5"
    with pytest.raises(KeyError), whole(path) as (beside,), Hdf5(beside):
        raise KeyError
    assert list(tmp_path.iterdir()) == []


def test_a_full_device_under_the_losses_is_one_line() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    words = [sys.executable, "-m", "diml.jobs.mf", "--generate", "9x9x40", "--K", "2", "--quiet"]
    words += ["--num_iterations", "2", "--loss_file", "/dev/full"]
    done = subprocess.run(words, capture_output=True, text=True)
    assert done.returncode == 2
    assert done.stderr == "diml: /dev/full: cannot write it: No space left on device\n"
