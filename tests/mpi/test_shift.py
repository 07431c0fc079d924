"""Values on the ring over real MPI: what arrives, and the same bits whoever dies on the way."""

from __future__ import annotations

import pytest

from tests.helpers.mpi import run_mpi

VALUES = """
    import numpy as np, diml
    with diml.init() as job:
        r, P = job.rank, job.size
        mine = np.arange(3 * (r + 1), dtype="f4").reshape(-1, 3) + 10 * r
        got = job.shift(mine)
        q = (r - 1) % P
        assert np.array_equal(got, np.arange(3 * (q + 1), dtype="f4").reshape(-1, 3) + 10 * q)
        got += 1
        assert mine[0, 0] == 10 * r and got.flags.writeable
        assert job.shift({"rank": r}, by=-2) == {"rank": (r + 2) % P}
        assert job.shift(np.empty((0, 4))).shape == (0, 4)
        assert job.shift(np.full(300_000, r), by=P)[-1] == r
        mine = np.full((2, 200_000), r, "f4")
        moving = [job.start_shift(mine, -1), job.start_shift(mine[:, :3], 1)]
        mine[:] = -1
        assert job.allreduce(float(r), "max") == P - 1
        near, far = (one.wait() for one in moving)
        assert near.shape == (2, 200_000) and (near == (r + 1) % P).all() and near.flags.writeable
        assert far.shape == (2, 3) and (far == (r - 1) % P).all() and moving[1].wait() is far
        assert job.start_shift(np.empty((0, 4))).wait().shape == (0, 4)
        print("fine", flush=True)
"""

PROGRAM = """
    import sys, numpy as np, diml
    with diml.init() as job:
        version, model, local = job.load_checkpoint()
        held = np.full(50_000, job.rank + 1.0) if local is None else local["held"]
        for step in range(version, 4):
            for turn in range(job.size):
                held = np.sqrt(held + job.rank + turn)
                held = job.shift(held, by=-1)
                if turn == 2:
                    job.allreduce(held[:3])
            job.checkpoint(None, {"held": held})
        print(job.rank, held[0].hex(), held.sum().hex(), flush=True)
"""


# Two arrays are on their way at any time, over the checkpoints too.
TRAVELLING = """
    import numpy as np, diml
    with diml.init() as job:
        version, model, local = job.load_checkpoint()
        arrived = lambda held: held if isinstance(held, np.ndarray) else held.wait()
        hands = [np.full(50_000, job.rank + x) for x in (1.0, 1.5)] if local is None else local
        for step in range(version, 4):
            for turn in range(2 * job.size):
                held = np.sqrt(arrived(hands.pop(0)) + job.rank + turn)
                hands.append(job.start_shift(held, by=-1))
                if turn == 2:
                    job.allreduce(held[:3])
            hands = [arrived(held) for held in hands]
            job.checkpoint(None, hands)
        print(job.rank, [(h[0].hex(), h.sum().hex()) for h in hands], flush=True)
"""

# A death that is noticed while the next arrays are sent off, before the lost one is waited for.
NOTICED = """
    import time, numpy as np, diml
    with diml.init() as job:
        job.load_checkpoint()
        held = job.start_shift(np.full(500, job.rank + 1.0)).wait()
        moving = []
        for step in range(10):
            moving.append(job.start_shift(held + step))
            time.sleep(0.05)
        print(job.rank, [(v := one.wait())[0] + v[-1] for one in moving], flush=True)
"""
PROGRAMS = {"noticed": NOTICED, "waiting": PROGRAM, "travelling": TRAVELLING}


@pytest.fixture(scope="module")
def calm() -> dict[str, list[str]]:
    """What each rank ends with when nobody dies."""
    return {
        name: sorted(run_mpi(4, program, timeout_s=60).expect().stdout.splitlines())
        for name, program in PROGRAMS.items()
    }


@pytest.mark.parametrize("n", [None, 3])
def test_values(n: int | None) -> None:
    done = run_mpi(n, VALUES, timeout_s=60).expect()
    assert done.stdout.count("fine") == (n or 1)


@pytest.mark.parametrize(
    ("name", "deaths"),
    [
        ("waiting", ("0,0,0,0", "2,2,1,0,inside", "3,3,4,0,after")),
        ("waiting", ("1,1,2,0", "2,1,2,0", "2,1,1,1")),
        ("noticed", ("0,0,0,0,after",)),
        ("noticed", ("3,0,0,0,after", "1,0,4,0")),
        ("travelling", ("3,2,5,0", "0,3,0,0,inside", "3,3,3,1")),
        ("travelling", ("0,0,0,0", "1,1,6,0,after", "2,1,6,0,inside", "1,1,2,1")),
    ],
    ids=[
        "inside and after",
        "neighbours, one again",
        "noticed early",
        "noticed early, and another",
        "at a checkpoint",
        "while both travel",
    ],
)
def test_deaths_leave_the_bits_as_they_were(
    calm: dict[str, list[str]], name: str, deaths: tuple[str, ...]
) -> None:
    env = {"DIML_DRILL": " ".join(deaths), "DIML_SPARES": "4"}
    stormy = run_mpi(4 + 4, PROGRAMS[name], env=env, timeout_s=60).expect()
    assert "did not fire" not in stormy.stderr
    assert sorted(stormy.stdout.splitlines()) == calm[name]


def test_a_shift_that_meets_another_call_is_named() -> None:
    program = """
        import numpy as np, diml
        with diml.init() as job:
            job.load_checkpoint()
            if job.rank == 1:
                job.allreduce(np.ones(2))
            else:
                job.shift(np.ones(2))
            print("finished", flush=True)
    """
    done = run_mpi(2, program, timeout_s=100, env={"DIML_DEADLINE": "20"})
    assert done.returncode == 1, done.report()
    assert "finished" not in done.stdout
    assert "different collectives" in done.stderr
