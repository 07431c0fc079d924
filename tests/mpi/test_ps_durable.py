"""Tables outlive their servers: jobs lost and stopped, resumed on other numbers of processes."""

from __future__ import annotations

import re
import shutil
import signal
from pathlib import Path

import pytest

from tests.helpers.kept import newest
from tests.helpers.mpi import Finished, run_mpi, start_mpi
from tests.mpi.test_run import kill_mpirun, memory_of

PROGRAM = ["-m", "tests.drills.ps_durable"]
FAIL = ["--pause", 0.01, "--fail-at", 20]
COUNTED = r"digest (\d+) counted 720 own 720"


def _env(directory: Path | None, servers: int, spares: int = 0, **more: str) -> dict[str, str]:
    env = {"DIML_SERVERS": str(servers), "DIML_SPARES": str(spares), **more}
    if directory is not None:
        env |= {"DIML_CHECKPOINT_DIR": str(directory), "DIML_CHECKPOINT_EVERY": "0.01"}
    return env


def _digest(finished: Finished, workers: int) -> str:
    """The one digest of all workers, each update having counted once."""
    digests = re.findall(COUNTED, finished.expect(0).stdout)
    assert len(digests) == workers and len(set(digests)) == 1, finished.report()
    return str(digests[0])


def _resumed_at(finished: Finished) -> int:
    match = re.search(r"resumed at (\d+) of 2 workers", finished.stdout)
    assert match, finished.report()
    return int(match[1])


@pytest.fixture(scope="module")
def undisturbed() -> str:
    """The digest of two workers without checkpoints."""
    return _digest(run_mpi(3, PROGRAM, env=_env(None, 1), timeout_s=60), 2)


@pytest.fixture(scope="module")
def lost(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkpoints of two workers and two servers that ended in an error at clock 20."""
    directory = tmp_path_factory.mktemp("lost")
    finished = run_mpi(4, PROGRAM, args=FAIL, env=_env(directory, 2), timeout_s=60)
    assert finished.returncode == 1 and "has an error" in finished.stderr, finished.report()
    return directory


@pytest.fixture
def kept(lost: Path, tmp_path: Path) -> Path:
    """A copy of them of this test's own."""
    return Path(shutil.copytree(lost, tmp_path / "kept"))


@pytest.mark.parametrize(
    ("servers", "spares", "drills"),
    [(2, 0, ""), (1, 0, ""), (3, 3, "1,25,2,0 2,27,0,0 3,28,1,0")],
)
def test_a_lost_job_goes_on_with_the_same_bits(
    servers: int, spares: int, drills: str, kept: Path, undisturbed: str
) -> None:
    env = _env(kept, servers, spares, DIML_DRILL=drills)
    finished = run_mpi(2 + servers + spares, PROGRAM, env=env, timeout_s=90)
    assert _digest(finished, 2) == undisturbed, finished.report()
    assert 10 <= _resumed_at(finished) <= 20


def test_another_number_of_workers_only_where_the_program_can_do_that(kept: Path) -> None:
    refused = run_mpi(4, PROGRAM, env=_env(kept, 1), timeout_s=60)
    assert refused.returncode == 2, refused.report()
    assert "2 workers wrote the checkpoint" in refused.stderr, refused.report()
    finished = run_mpi(4, PROGRAM, args=["--any-workers"], env=_env(kept, 1), timeout_s=60)
    _digest(finished, 3)
    assert _resumed_at(finished) >= 10


def test_another_job_or_another_table_is_refused_by_name(kept: Path) -> None:
    other_data = run_mpi(3, PROGRAM, args=["--data", "B"], env=_env(kept, 1), timeout_s=60)
    assert other_data.returncode == 2, other_data.report()
    assert "its data is A, this run's is B" in other_data.stderr, other_data.report()
    other_table = run_mpi(3, PROGRAM, args=["--width", 4], env=_env(kept, 1), timeout_s=60)
    assert other_table.returncode == 2, other_table.report()
    assert "'model' is defined in two ways: cols 3 against 4" in other_table.stderr


def test_what_is_damaged_or_missing_is_named_and_never_read(kept: Path, undisturbed: str) -> None:
    whole = (p for p in (kept / "ps").iterdir() if len(list(p.glob("rank-*.json"))) == 2)
    newest = max(whole)
    piece = newest / "rank-00001.h5"
    data = bytearray(piece.read_bytes())
    data[len(data) // 2] ^= 1
    piece.write_bytes(data)
    finished = run_mpi(3, PROGRAM, env=_env(kept, 1), timeout_s=60)
    assert _digest(finished, 2) == undisturbed
    assert f"skipped: {piece}" in finished.stderr, finished.report()
    for manifest in (kept / "ps").glob("*/rank-00000.json"):
        manifest.unlink()
    env = _env(kept, 1, DIML_RESUME="must")
    refused = run_mpi(3, PROGRAM, env=env, timeout_s=60)
    assert refused.returncode == 2, refused.report()
    assert "--resume must: no checkpoint in" in refused.stderr, refused.report()


def test_a_stop_signal_ends_in_a_checkpoint_at_a_bound_of_staleness(tmp_path: Path) -> None:
    args = ["--consistency", "ssp(2)", "--clocks", 200, "--pause", 0.04, "--hurry"]
    env = {**_env(tmp_path, 2), "DIML_CHECKPOINT_EVERY": "600"}
    with start_mpi(4, PROGRAM, args=args, env=env) as running:
        running.wait_for(r"^clock 20$", timeout_s=60)
        running.kill(running.pid, signal.SIGUSR1)
        stopped = running.wait(timeout_s=60)
    assert stopped.returncode == 75, stopped.report()
    match = re.search(r"stopped in good order; clock (\d+) is kept", stopped.stderr)
    assert match, stopped.report()
    again = run_mpi(3, PROGRAM, args=args, env=_env(tmp_path, 1), timeout_s=60).expect(0)
    assert _resumed_at(again) == int(match[1])
    assert len(re.findall(r"counted 4800 own 4800", again.stdout)) == 2, again.report()


def test_a_lost_job_goes_on_from_the_memory_of_the_node(tmp_path: Path) -> None:
    # The memory of a node gets a snapshot every five seconds. `diml run` counts workers alone.
    program = ["tests.drills.ps_durable", "--clocks", "240", "--pause", "0.1", "--hurry"]
    command = ["-m", "diml.cli", "run", "-n", "2", "--servers", "2", "--", *program]
    with start_mpi(None, command, cwd=tmp_path) as running:
        running.wait_for(r"^clock 1$", timeout_s=90)
        memory = memory_of(running) / "ps"
        running.wait_until(
            lambda: newest(memory, in_memory=True), "a snapshot in memory", timeout_s=90
        )
        kill_mpirun(running)
        done = running.wait(timeout_s=120).expect(0)
    assert done.stderr.count("started again") == 1, done.report()
    assert _resumed_at(done) > 0, done.report()
    assert len(re.findall(r"counted 5760 own 5760", done.stdout)) == 2, done.report()
