"""SIGKILLs from outside at random moments; `DIML_PS_KILLS` sets how many in all (default 12)."""

from __future__ import annotations

import os
import random
import re
from pathlib import Path

import pytest

from tests.drills.ps_kills import Killer
from tests.helpers.mpi import run_mpi, start_mpi

KILLS = int(os.environ.get("DIML_PS_KILLS", "12"))
KILLS_A_RUN = 3
CLOCKS = 120
PROGRAM = ["-m", "tests.drills.ps_count"]
ARGS = ["--clocks", CLOCKS, "--pause", "0.01"]


def _digests(stdout: str) -> set[str]:
    lines = re.findall(r"digest (\d+) wrong (\d+)", stdout)
    assert len(lines) == 3 and all(wrong == "0" for _, wrong in lines), stdout
    return {digest for digest, _ in lines}


@pytest.fixture(scope="module")
def undisturbed() -> set[str]:
    finished = run_mpi(4, PROGRAM, args=ARGS, env={"DIML_SERVERS": "1"}, timeout_s=90).expect(0)
    return _digests(finished.stdout)


@pytest.mark.parametrize("seed", range(-(-KILLS // KILLS_A_RUN)))
def test_random_kills(seed: int, undisturbed: set[str], tmp_path: Path) -> None:
    rng = random.Random(seed)
    staleness = rng.choice((0, 0, 3))
    servers = rng.choice((1, 2))
    env = {
        "DIML_SERVERS": str(servers),
        "DIML_SPARES": str(KILLS_A_RUN + 2),
        "DIML_EVENTS": str(tmp_path / "events"),
    }
    moments = sorted(rng.sample(range(CLOCKS // 20, CLOCKS * 9 // 10), KILLS_A_RUN))
    args = [*ARGS, "--staleness", staleness]
    n = 3 + servers + KILLS_A_RUN + 2
    with start_mpi(n, PROGRAM, args=args, env=env) as running:
        killer = Killer(running, tmp_path / "events", rng)
        for moment in moments:
            clocks = "|".join(str(clock) for clock in range(moment, CLOCKS + 1))
            match = running.wait_for(rf"^clock ({clocks})$", timeout_s=60)
            # A worker and its server at once, where another server or the standby has its rows.
            both = rng.random() < 0.25 and not killer.killed
            roles = ("worker", "server") if both else (rng.choice(("worker", "worker", "server")),)
            killer.strike(roles, match[0])
        finished = running.wait(timeout_s=120).expect(0)
    assert len(killer.killed) >= KILLS_A_RUN
    digests = _digests(finished.stdout)
    if staleness == 0:
        assert digests == undisturbed, f"{killer.killed}\n{finished.report()}"
    last = max(int(line.rsplit(" ", 1)[1]) for line in killer.killed)
    assert last < CLOCKS * 0.95, killer.killed
