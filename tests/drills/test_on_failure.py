"""`--on-failure`: what becomes of a job when a rank dies and there is no spare."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from tests.helpers.mpi import run_mpi

# Each rank keeps counters; those of lost ranks are carried on by whoever inherits them, so that
# the final sum over all is that of the run without failures, whatever the number of ranks.
COUNTERS = """
import numpy as np
import diml

with diml.init() as job:
    def train():
        version, total, mine = job.load_checkpoint()
        if version == 0:
            total, mine = 0, {job.rank: job.rank}
        for lost in job.inherited.values():
            mine |= lost
        for _ in range(version, 8):
            total += int(job.allreduce(np.array([sum(mine.values())]))[0])
            mine = {key: value + 1 for key, value in mine.items()}
            job.checkpoint(total, mine)
        return total

    print("total", job.elastic(train), "of", job.size, flush=True)
"""
"""Its total is the sum over 8 steps t of (6 + 4 t), with 4 ranks at the start: 160."""

# The disk is at most two versions behind.
KEEPS_UP = """
import os
from pathlib import Path
from tests.helpers import kept

def keep_up(version):
    if version > 2:
        kept.wait_for(version - 2, Path(os.environ["DIML_CHECKPOINT_DIR"]))
"""

# Where checkpoints are kept, one is on the disk when a rank dies at version 3.
HANDLES_NOTHING = """
import os
from pathlib import Path
import numpy as np
import diml
from tests.helpers import kept

directory = os.environ.get("DIML_CHECKPOINT_DIR")
with diml.init() as job:
    version, total, _ = job.load_checkpoint()
    for step in range(version, 8):
        total = job.allreduce(np.array([1.0]))
        job.checkpoint(total.copy())
        if directory and step == 2:
            kept.wait_for(1, Path(directory))
"""


def deaths(events: Path) -> int:
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    return sum(line["what"] == "drill" for line in lines)


@pytest.mark.parametrize(
    ("drills", "left"),
    [
        ("2,3,0,0", 3),
        ("0,3,0,0 3,5,0,0,inside", 2),
        ("1,2,1,0,checkpoint 3,2,1,0,checkpoint 2,5,0,0,after", 1),
        # The second in the repair of the first, where it may not have left the collective yet.
        ("1,1,1,0,checkpoint 3,1,0,0,repair 3,1,1,0,repair", 2),
    ],
)
def test_shrink_goes_on_with_fewer_and_loses_no_state(
    drills: str, left: int, tmp_path: Path
) -> None:
    events = tmp_path / "events"
    env = {"DIML_ON_FAILURE": "shrink", "DIML_DRILL": drills, "DIML_EVENTS": str(events)}
    finished = run_mpi(4, COUNTERS, env=env, timeout_s=60).expect(0)
    lines = [line for line in finished.stdout.splitlines() if line.startswith("total")]
    assert lines == [f"total 160 of {left}"] * left
    assert deaths(events) == 4 - left


def test_fewer_workers_go_on_writing_to_the_disk_and_are_resumed_as_so_many(
    tmp_path: Path,
) -> None:
    kept = {"DIML_CHECKPOINT_DIR": str(tmp_path / "kept"), "DIML_CHECKPOINT_EVERY": "0.001"}
    env = {"DIML_ON_FAILURE": "shrink", "DIML_DRILL": "2,3,0,0", **kept}
    call = "job.checkpoint(total, mine)"
    program = KEEPS_UP + COUNTERS.replace(call, f"{call}; keep_up(job.version)")
    finished = run_mpi(4, program, env=env, timeout_s=60).expect(0)
    assert finished.stdout.count("total 160 of 3") == 3
    # The states of all four lie with three now, and none is lost.
    again = run_mpi(3, COUNTERS, env={"DIML_RESUME": "must", **kept}, timeout_s=60).expect(0)
    assert again.stdout.count("total 160 of 3") == 3


def test_parts_begin_anew_with_fewer_workers() -> None:
    program = """
        import numpy as np
        import diml

        with diml.init(on_failure="shrink") as job:
            def train():
                size = job.parts.once("size", lambda: job.size)
                loop = job.parts.part("loop")
                total = 0 if loop.saved is None else loop.saved["total"]
                for step in range(0 if loop.saved is None else loop.saved["step"], 6):
                    total += int(job.allreduce(np.array([1]))[0])
                    loop.checkpoint({"step": step + 1, "total": total})
                return size, total

            print("got", *job.elastic(train), flush=True)
    """
    finished = run_mpi(3, program, env={"DIML_DRILL": "1,3,0,0"}, timeout_s=60).expect(0)
    # Version 1 is the end of the first part: two steps of three workers, then four of two.
    assert finished.stdout.count("got 3 14") == 2


def test_shrink_takes_spares_first(tmp_path: Path) -> None:
    events = tmp_path / "events"
    env = {
        "DIML_ON_FAILURE": "shrink",
        "DIML_DRILL": "1,2,0,0 1,5,0,1",
        "DIML_EVENTS": str(events),
        "DIML_SPARES": "1",
    }
    finished = run_mpi(5, COUNTERS, env=env, timeout_s=60).expect(0)
    assert finished.stdout.count("total 160 of 3") == 3
    assert deaths(events) == 2


def test_a_program_that_cannot_shrink_ends_with_a_reason(tmp_path: Path) -> None:
    env = {"DIML_ON_FAILURE": "shrink", "DIML_DRILL": "1,3,0,0"}
    finished = run_mpi(3, HANDLES_NOTHING, env=env, timeout_s=60).expect(1)
    assert "diml: rank 1 died; 2 are left" in finished.stderr
    assert "Traceback" not in finished.stderr
    env |= {"DIML_CHECKPOINT_DIR": str(tmp_path / "kept"), "DIML_CHECKPOINT_EVERY": "0.000001"}
    run_mpi(3, HANDLES_NOTHING, env=env, timeout_s=60).expect(75)


def test_stop_leaves_at_the_first_death_though_a_spare_is_there(tmp_path: Path) -> None:
    env = {"DIML_ON_FAILURE": "stop", "DIML_DRILL": "1,3,0,0", "DIML_SPARES": "1"}
    finished = run_mpi(4, HANDLES_NOTHING, env=env, timeout_s=60).expect(1)
    assert "diml: worker 1 died, and the job was to stop then" in finished.stderr
    env |= {"DIML_CHECKPOINT_DIR": str(tmp_path / "kept"), "DIML_CHECKPOINT_EVERY": "0.000001"}
    run_mpi(4, HANDLES_NOTHING, env=env, timeout_s=60).expect(75)
    run_mpi(4, HANDLES_NOTHING, env={**env, "DIML_DRILL": ""}, timeout_s=60).expect(0)


def test_spare_gives_up_when_the_spares_are_used_up() -> None:
    env = {"DIML_ON_FAILURE": "spare", "DIML_DRILL": "1,3,0,0"}
    finished = run_mpi(3, HANDLES_NOTHING, env=env, timeout_s=60).expect(1)
    assert "worker 1 died and no spare is left" in finished.stderr


def test_a_job_with_servers_does_not_shrink() -> None:
    env = {"DIML_ON_FAILURE": "shrink", "DIML_SERVERS": "1"}
    finished = run_mpi(3, HANDLES_NOTHING, env=env, timeout_s=60).expect(2)
    assert "a job with servers cannot go on with fewer" in finished.stderr


def test_kmeans_shares_its_rows_out_anew(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    corners = np.array([[0.0, 0.0], [10.0, 0.0], [0.0, 10.0], [10.0, 10.0]])
    np.save(tmp_path / "points.npy", corners[rng.integers(0, 4, 300)] + rng.normal(size=(300, 2)))
    outputs = []
    for name, drill in (("calm", []), ("drill", ["--drill", "1,3,0,0"])):
        job = ["-m", "diml.jobs.kmeans", "--datafile", str(tmp_path / "points.npy"), "--k", "4"]
        job += ["--on-failure", "shrink", "--output", str(tmp_path / name), *drill]
        finished = run_mpi(3, job, timeout_s=60).expect(0)
        assert ("2 workers go on without [1]" in finished.stdout) == bool(drill)
        outputs.append(np.loadtxt(tmp_path / f"{name}.C"))
        assert len(np.loadtxt(tmp_path / f"{name}.labels")) == 300
    np.testing.assert_allclose(outputs[0], outputs[1], rtol=1e-6)


# What a newcomer is brought takes longer than it may take to become a member.
SLOW_RESTORE = """
import time
import numpy as np
import diml
import diml.world.spawn
from diml.allreduce.engine import Engine

diml.world.spawn._BRIDGE_DEADLINE_S = 2
restore = Engine._restore

def slowly(engine):
    time.sleep(4)
    restore(engine)

Engine._restore = slowly
with diml.init() as job:
    version, total, _ = job.load_checkpoint()
    for step in range(version, 4):
        total = job.allreduce(np.array([1.0]))
        job.checkpoint(total.copy())
    print("life", job.incarnation, "epoch", job.epoch, flush=True)
"""


def test_a_new_process_may_take_its_time_to_be_brought_its_state() -> None:
    done = run_mpi(2, SLOW_RESTORE, env={"DIML_DRILL": "1,2,0,0"}, timeout_s=90).expect(0)
    assert sorted(done.stdout.splitlines()) == ["life 0 epoch 1", "life 1 epoch 1"]
