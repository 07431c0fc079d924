"""Durable checkpoints in real jobs: killed whole, stopped, damaged, foreign, resumed."""

from __future__ import annotations

import os
import random
import re
import signal
import time
from pathlib import Path

import pytest

from diml.events import read_events
from tests.helpers import kept
from tests.helpers.mpi import Finished, Running, run_mpi, start_mpi

STEPS = 40
ROUNDS = int(os.environ.get("DIML_TEST_KILL_ROUNDS", "2"))
PROGRAM = """
    import os, sys, time, zlib
    import numpy as np
    import diml

    # Until the file is there nobody goes beyond this step.
    hold, _, gate = os.environ.get("TEST_HOLD", "-1:").partition(":")
    steps, pause_s, uses_local = int(sys.argv[1]), float(sys.argv[2]), sys.argv[3] == "local"
    with diml.init() as job:
        job.identify(data="planted")
        version, model, local = job.load_checkpoint()
        if job.rank == 0:
            print("from", version, flush=True)
        if version == 0:
            model, local = np.zeros(1000), np.arange(10) + job.rank
        for step in range(version, steps):
            time.sleep(pause_s)
            while step == int(hold) and not os.path.exists(gate):
                time.sleep(0.01)
            mine = local.sum() if uses_local else 1
            total = job.allreduce(np.sin(np.arange(1000.0) * (step + 1)) * mine)
            model = model * 0.5 + total
            if uses_local:
                local = local + step
            job.checkpoint(model, local if uses_local else None)
            if job.rank == 0:
                print("at", job.version, flush=True)
        if job.rank == 0:
            print("answer", zlib.crc32(model.tobytes()), flush=True)
"""


def start(
    directory: Path | None,
    *,
    n: int = 3,
    pause_s: float = 0.01,
    state: str = "local",
    every_s: float = 0.02,
    **env: str,
) -> Running:
    durable = {"DIML_CHECKPOINT_EVERY": str(every_s)}
    if directory is not None:
        durable["DIML_CHECKPOINT_DIR"] = str(directory)
    return start_mpi(n, PROGRAM, args=(STEPS, pause_s, state), env={**durable, **env})


def finish(
    directory: Path | None, status: int = 0, n: int = 3, pause_s: float = 0.0, **env: str
) -> Finished:
    # So that the first version is written in any case.
    with start(directory, n=n, pause_s=pause_s, every_s=0.000001, **env) as running:
        return running.wait(timeout_s=90).expect(status)


def answer(finished: Finished) -> str:
    match = re.search(r"^answer (\d+)$", finished.stdout, re.MULTILINE)
    assert match, finished.report()
    return match[1]


def first_version(finished: Finished) -> int:
    match = re.search(r"^from (\d+)$", finished.stdout, re.MULTILINE)
    assert match, finished.report()
    return int(match[1])


def wait_for_kept(running: Running, directory: Path) -> None:
    running.wait_until(lambda: kept.newest(directory), "a checkpoint on the disk", timeout_s=60)


def kill_all(running: Running) -> None:
    running.kill(running.pid)
    for process in running.leftovers():
        running.kill(process.pid)
    running.wait(timeout_s=20)


def test_killed_whole_at_random_moments_it_ends_with_the_same_answer(tmp_path: Path) -> None:
    wanted = answer(finish(None))
    seed = random.randrange(10**9)
    print(f"seed {seed}")
    dice = random.Random(seed)
    resumed = 0
    for round_ in range(ROUNDS):
        directory, gate = tmp_path / str(round_), tmp_path / f"gate-{round_}"
        hold = {"TEST_HOLD": f"8:{gate}"} if round_ == 0 else {}
        with start(directory, pause_s=0.02, **hold) as running:
            running.wait_for("^at 3$", timeout_s=60)
            if round_ == 0:  # one at least has something to go on from
                wait_for_kept(running, directory)
                gate.touch()
            time.sleep(dice.uniform(0.0, 0.6))
            kill_all(running)
        done = finish(directory)
        assert answer(done) == wanted, f"seed {seed}, round {round_}\n{done.report()}"
        resumed += first_version(done) > 0
    assert resumed > 0


def test_without_local_states_another_number_of_workers_goes_on(tmp_path: Path) -> None:
    with start(tmp_path, state="model", TEST_HOLD="20:") as running:
        wait_for_kept(running, tmp_path)
        kill_all(running)
    done = run_mpi(
        2,
        PROGRAM,
        args=(STEPS, 0.0, "model"),
        env={"DIML_CHECKPOINT_DIR": str(tmp_path), "DIML_RESUME": "must"},
        timeout_s=60,
    ).expect(0)
    assert first_version(done) > 0


def test_a_signal_to_mpirun_stops_all_at_one_version_to_be_resumed(tmp_path: Path) -> None:
    wanted = answer(finish(None))
    with start(tmp_path, pause_s=0.2, every_s=1000) as running:
        running.wait_for("^at 3$", timeout_s=60)
        running.kill(running.pid, signal.SIGUSR1)
        stopped = running.wait(timeout_s=60).expect(75)
    assert len(re.findall("stopped in good order; version", stopped.stderr)) == 1
    done = finish(tmp_path, DIML_RESUME="must")
    assert first_version(done) >= 3 and answer(done) == wanted
    kept = re.search(r"version (\d+) is kept", stopped.stderr)
    assert kept and int(kept[1]) == first_version(done)


def test_damage_is_named_and_the_version_before_taken(tmp_path: Path) -> None:
    directory, gate = tmp_path / "kept", tmp_path / "gate"
    # When the first version is there the next checkpoint begins to write a second one.
    with start(directory, pause_s=0.0, every_s=0.000001, TEST_HOLD=f"8:{gate}") as running:
        wait_for_kept(running, directory)
        gate.touch()
        wanted = answer(running.wait(timeout_s=90).expect(0))
    for path in directory.rglob("*"):
        assert path.stat().st_mode & 0o077 == 0, path
    versions = sorted(directory.glob("*-v*"))
    assert len(versions) > 1
    path = versions[-1] / "rank-00001.h5"
    data = bytearray(path.read_bytes())
    data[-40] ^= 4
    path.write_bytes(data)
    done = finish(directory)
    assert answer(done) == wanted and first_version(done) > 0
    assert done.stderr.count("skipped") == 1 and str(path) in done.stderr
    for version in directory.glob("*-v*"):
        (version / "rank-00000.h5").unlink(missing_ok=True)
    done = finish(directory, 2, DIML_RESUME="must")
    assert "--resume must: no checkpoint in" in done.stderr and "rank-00000.h5" in done.stderr
    assert done.stderr.count("diml: --resume must") == 1


def test_another_seed_is_refused_by_one_line(tmp_path: Path) -> None:
    finish(tmp_path, DIML_SEED="1")
    done = finish(tmp_path, 2, DIML_SEED="2")
    lines = [line for line in done.stderr.splitlines() if line.startswith("diml:")]
    assert len(lines) == 1 and "its seed is 1, this run's is 2" in lines[0]
    assert first_version(finish(tmp_path, DIML_SEED="2", DIML_RESUME="never")) == 0


KMEANS = ["kmeans", "--datafile", "x.libsvm", "--k", "2"]
LASSO = ["lasso", "--data_xfile", "x.libsvm", "--policy", "cyclic", "--checkpoint_work", "1"]
LOGISTIC = ["logistic", "--datafile", "x.libsvm", "--method", "lbfgs"]


@pytest.mark.parametrize(
    ("job", "other", "fact"),
    [
        (KMEANS, ["--k", "3"], "k"),
        (LASSO, ["--lambda_ratio", "0.3"], "grid"),
        (LOGISTIC, ["--l2", "0.5"], "l2"),
    ],
    ids=["kmeans", "lasso", "logistic"],
)
def test_a_job_on_other_data_or_to_another_end_is_refused(
    tmp_path: Path, job: list[str], other: list[str], fact: str
) -> None:
    def run(*flags: str) -> Finished:
        command = ["-m", f"diml.jobs.{job[0]}", *job[1:], *flags, "--checkpoint-dir", "kept"]
        every = {"DIML_CHECKPOINT_EVERY": "0.000001"}
        return run_mpi(None, command, env=every, cwd=tmp_path, timeout_s=90)

    rows = [f"{i % 2} 1:{i * i % 7} 2:{i % 3} 3:{i}\n" for i in range(40)]
    (tmp_path / "x.libsvm").write_text("".join(rows))
    run().expect(0)
    assert list((tmp_path / "kept").glob("*-v*"))
    refused = run(*other).expect(2)
    assert refused.stderr.count("diml:") == 1 and f"its {fact} is " in refused.stderr
    (tmp_path / "x.libsvm").write_text("".join([*rows[:-1], "1 1:2 2:2 3:40\n"]))
    refused = run().expect(2)
    assert refused.stderr.count("diml:") == 1 and "its data is " in refused.stderr


@pytest.mark.parametrize(
    ("job", "other", "fact"),
    [
        (["ccd", "--datafile", "a", "--checkpoint_work", "1"], ["--datafile", "b"], "data"),
        (["combined", "--rows", "200", "--clocks", "5"], ["--features", "9"], "features"),
    ],
    ids=["ccd", "combined"],
)  # fmt: skip
def test_what_a_program_of_several_parts_kept_is_refused_to_another(
    tmp_path: Path, job: list[str], other: list[str], fact: str
) -> None:
    def run(*flags: str) -> Finished:
        command = ["-m", f"diml.jobs.{job[0]}", *job[1:], *flags, "--checkpoint-dir", "kept"]
        every = {"DIML_CHECKPOINT_EVERY": "0.000001"}
        return run_mpi(None, command, env=every, cwd=tmp_path, timeout_s=90)

    (tmp_path / "a").write_text("".join(f"0 {j} {j + 1}\n" for j in range(6)))
    (tmp_path / "b").write_text("".join(f"{j % 5} {j} {j + 1}\n" for j in range(9)))
    run().expect(0)
    refused = run(*other).expect(2)
    assert refused.stderr.count("diml:") == 1 and f"its {fact} is " in refused.stderr


RABIT = """
    import sys
    from diml.allreduce import rabit

    class Model:
        pass

    rabit.init()
    version, model = rabit.load_checkpoint()
    rabit.checkpoint(Model() if sys.argv[1] == "object" else {"diml.PICKLED": b"evil"})
    rabit.finalize()
"""


def test_no_pickle_goes_to_a_disk_or_comes_from_there(tmp_path: Path) -> None:
    env = {"DIML_CHECKPOINT_DIR": str(tmp_path), "DIML_CHECKPOINT_EVERY": "0.000001"}
    run_mpi(None, RABIT, args=["object"], timeout_s=60).expect(0)
    refused = run_mpi(None, RABIT, args=["object"], env=env, timeout_s=60).expect(2)
    assert "Model" in refused.stderr
    forging = RABIT.replace("diml.PICKLED", "pickled by diml.allreduce.rabit")
    run_mpi(None, forging, args=["bytes"], env=env, timeout_s=60).expect(0)
    refused = run_mpi(None, forging, args=["bytes"], env=env, timeout_s=60).expect(2)
    assert "a pickled state is not read" in refused.stderr


def test_a_rank_that_dies_after_a_resume_is_replaced_to_the_same_answer(tmp_path: Path) -> None:
    wanted = answer(finish(None))
    directory, log = tmp_path / "kept", tmp_path / "events"
    with start(directory, TEST_HOLD="20:") as running:
        wait_for_kept(running, directory)
        kill_all(running)
    env = {"DIML_DRILL": "1,26,0,0 2,29,1,0,checkpoint", "DIML_EVENTS": str(log)}
    done = finish(directory, n=4, DIML_SPARES="1", DIML_RESUME="must", **env)
    assert first_version(done) > 0 and answer(done) == wanted
    assert [event["version"] for event in read_events(log) if event["what"] == "drill"] == [26, 29]


def test_a_job_that_gives_up_leaves_with_75_only_if_it_can_be_resumed(tmp_path: Path) -> None:
    lost = {"DIML_ON_FAILURE": "spare", "DIML_DRILL": "1,20,0,0"}
    directory, gate = tmp_path / "kept", tmp_path / "gate"
    with start(directory, TEST_HOLD=f"19:{gate}", **lost) as running:
        wait_for_kept(running, directory)
        gate.touch()
        running.wait(timeout_s=90).expect(75)
    assert first_version(finish(directory, DIML_RESUME="must")) > 0
    finish(None, 1, **lost)


# Told to stop, while the disk of rank 1 takes nothing any more.
HUNG_DISK = """
import os, signal, time
import numpy as np
import diml
import diml.checkpoint.disk as disk

with diml.init() as job:
    version, model, _ = job.load_checkpoint()
    if job.rank == 1 and job.incarnation == 0:
        disk.write_shard = lambda *about: time.sleep(1000)
    for step in range(version, 10_000):
        job.allreduce(np.ones(3))
        if step == 20 and job.rank == 0:
            os.kill(os.getpid(), signal.SIGUSR1)
        job.checkpoint({"step": step}, {"rank": job.rank})
"""


def test_a_disk_that_hangs_is_late_when_the_job_is_told_to_stop(tmp_path: Path) -> None:
    kept = {"DIML_CHECKPOINT_DIR": str(tmp_path), "DIML_CHECKPOINT_EVERY": "1000"}
    env = {"DIML_DEADLINE": "8", "DIML_FROZEN_DEADLINE": "3", "DIML_SPARES": "1", **kept}
    done = run_mpi(4, HUNG_DISK, env=env, timeout_s=90).expect(75)
    assert "stopped in good order" in done.stderr
