"""Drills of the parameter server over real MPI: who dies, and the answer stays the same."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from tests.helpers.mpi import Finished, run_mpi

PROGRAM = ["-m", "tests.drills.ps_count"]
CLOCKS = 24


def _run(
    path: Path,
    servers: int,
    spares: int | None,
    drills: str = "",
    staleness: int = 0,
    options: tuple[str, ...] = (),
    env: dict[str, str] | None = None,
) -> Finished:
    """One run with three workers; asserts that every drill has struck. No spares: auto."""
    events = path / "events.jsonl"
    finished = run_mpi(
        3 + servers + (spares or 0),
        PROGRAM,
        args=["--clocks", CLOCKS, "--staleness", staleness, *options],
        env={
            "DIML_SERVERS": str(servers),
            "DIML_SPARES": "auto" if spares is None else str(spares),
            "DIML_DRILL": drills,
            "DIML_EVENTS": str(events),
            **(env or {}),
        },
        timeout_s=90,
    ).expect(0)
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    struck = [line for line in lines if line["what"] == "drill"]
    assert len(struck) == len(drills.split()), f"{struck} of {drills}\n{finished.report()}"
    return finished


def _verdicts(finished: Finished, staleness: int = 0) -> set[str]:
    """The digests that the workers print, after the checks that always hold."""
    lines = re.findall(r"digest (\d+) wrong (\d+) seen (\d+)", finished.stdout)
    assert len(lines) == 3, finished.report()
    assert all(wrong == "0" and int(seen) <= staleness for _, wrong, seen in lines)
    return {digest for digest, _, _ in lines}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> set[str]:
    """Digest of three workers at staleness 0 without a death."""
    digests = _verdicts(_run(tmp_path_factory.mktemp("undisturbed"), 1, 0))
    assert len(digests) == 1
    return digests


# Three workers are 0..2; the servers and then the spares have the numbers after them.
@pytest.mark.parametrize(
    ("servers", "spares", "drills"),
    [
        (1, 1, "1,12,2,0"),
        (1, 2, "2,0,1,0 0,12,3,0,after"),
        (1, 1, "3,12,0,0"),
        (1, 2, "3,8,0,0,inside 3,16,0,1,after"),
        (1, 1, "4,12,0,0"),
        (1, 2, "1,12,2,0 3,12,0,0"),
        (1, 3, "0,9,0,0 0,9,1,1 3,15,0,0"),
        (2, 2, "3,8,0,0 4,16,0,0,after"),
        (2, 2, "1,12,4,0 3,12,0,0,inside"),
        (3, 3, "3,6,0,0 4,12,0,0,inside 5,18,0,0,after"),
        # All workers at once, in the clock and on its way to the servers; with a server.
        (1, 3, "0,12,2,0 1,12,2,0 2,12,2,0"),
        (2, 4, "0,12,5,0,inside 1,12,5,0,inside 2,12,5,0,inside 3,12,0,0"),
        (2, 0, ""),
    ],
)
def test_bits_are_those_of_the_undisturbed_run(
    servers: int, spares: int, drills: str, undisturbed: set[str], tmp_path: Path
) -> None:
    finished = _run(tmp_path, servers, spares, drills)
    assert _verdicts(finished) == undisturbed, finished.report()


def test_without_spares_a_worker_and_a_server_are_replaced_by_new_processes(
    undisturbed: set[str], tmp_path: Path
) -> None:
    finished = _run(tmp_path, 2, None, "1,12,2,0 4,18,0,0")
    assert _verdicts(finished) == undisturbed, finished.report()
    lines = [json.loads(line) for line in (tmp_path / "events.jsonl").read_text().splitlines()]
    joined = {(line["role"], line["rank"]) for line in lines if line["what"] == "join"}
    assert {("worker", 1), ("server", 1)} <= joined, joined


@pytest.mark.parametrize(
    ("servers", "drills", "options"),
    [
        (1, "1,12,2,0 3,16,0,0", ()),
        (2, "0,8,4,0,after 4,12,0,0,inside 2,14,0,0", ("--cache", "0")),
        (2, "0,8,4,0 4,12,0,0", ("--consistency", "essp(3)", "--cache", "150")),
        (1, "1,12,2,0 3,16,0,0", ("--consistency", "essp(3)")),
        (2, "1,12,2,0 3,16,0,0", ("--filters", "keys", "half")),
    ],
)
def test_each_update_counts_once_where_reads_may_be_stale(
    servers: int, drills: str, options: tuple[str, ...], tmp_path: Path
) -> None:
    staleness = 0 if "--consistency" in options else 3
    _verdicts(_run(tmp_path, servers, 3, drills, staleness, options), staleness=3)


def test_as_many_adjacent_servers_as_there_are_replicas_may_die_at_once(
    undisturbed: set[str], tmp_path: Path
) -> None:
    env = {"DIML_PS_REPLICAS": "2"}
    finished = _run(tmp_path, 3, 2, "3,12,0,0 4,12,0,0", env=env)
    assert _verdicts(finished) == undisturbed, finished.report()


def test_more_adjacent_servers_than_replicas_end_in_the_named_error() -> None:
    # The second one dies where the first does or, if it has not come there, in the repair.
    finished = run_mpi(
        3 + 3 + 2,
        PROGRAM,
        args=["--clocks", CLOCKS],
        env={
            "DIML_SERVERS": "3",
            "DIML_SPARES": "2",
            "DIML_PS_REPLICAS": "1",
            "DIML_DRILL": "3,12,0,0 4,12,0,0 4,11,0,0,repair",
        },
        timeout_s=90,
    ).expect(1)
    assert len(re.findall(r"lost rows count\[0:\d+\], model\[0:\d+\]", finished.stderr)) == 1
    assert "digest" not in finished.stdout, finished.report()


def test_lost_rows_are_named_and_never_made_anew() -> None:
    finished = run_mpi(
        3,
        PROGRAM,
        env={
            "DIML_SERVERS": "1",
            "DIML_SPARES": "1",
            "DIML_PS_REPLICAS": "0",
            "DIML_DRILL": "1,5,0,0",
        },
        timeout_s=60,
    )
    assert finished.returncode == 1, finished.report()
    assert finished.stderr.count("lost rows count[0:200], model[0:200]") == 1, finished.report()
    assert "not replicated" in finished.stderr
