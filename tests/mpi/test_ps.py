"""The parameter server over real MPI: the bound under a slow worker, deadlines, neighbours."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from diml.events import read_events
from tests.helpers.mpi import run_mpi, start_mpi

COUNT = ["-m", "tests.drills.ps_count"]


@pytest.mark.parametrize("consistency", ["bsp", "ssp(2)", "essp(2)"])
def test_no_read_is_staler_than_the_bound_beside_a_slow_worker(consistency: str) -> None:
    bound = 0 if consistency == "bsp" else 2
    args = ["--consistency", consistency, "--clocks", 25, "--ahead", bound]
    finished = run_mpi(4, COUNT, args=args, env={"DIML_SERVERS": "1"}, timeout_s=60).expect(0)
    seen = [int(s) for s in re.findall(r"wrong 0 seen (\d+)", finished.stdout)]
    # The slow worker keeps the others at the bound, and nobody gets beyond it.
    assert len(seen) == 3 and max(seen) == bound, finished.report()


def test_the_log_tells_the_staleness_of_reads_and_the_bytes_that_filters_save(
    tmp_path: Path,
) -> None:
    program = """
        import numpy as np
        import diml
        with diml.init(servers=1) as job:
            ps = job.parameter_server(2, filters=["half"])
            table, every = ps.table("t", 500, 8), np.arange(500)
            for clock in range(6):
                table.inc(every, table.get(every) + 1)
                ps.clock()
    """
    env = {"DIML_EVENTS": str(tmp_path / "log"), "DIML_SPARES": "0"}
    run_mpi(3, program, env=env, timeout_s=60).expect(0)
    events = read_events(tmp_path / "log")
    seen = [event for event in events if event["what"] == "staleness"]
    assert [event["bound"] for event in seen] == [2, 2]
    for event in seen:
        assert set(event["reads"]) <= {"0", "1", "2"} and sum(event["reads"].values()) == 6
    traffic = {e["uid"]: e for e in events if e["what"] == "traffic" and e["by"] == "servers"}
    assert set(traffic) == {0, 1, 2}
    for event in traffic.values():
        assert 0 < event["wire_bytes"] < event["plain_bytes"]


@pytest.mark.parametrize(
    ("workers", "staleness", "sparse"), [(1, 0, False), (2, 2, False), (1, 0, True), (2, 2, True)]
)
def test_small_messages_of_dense_tables_go_the_short_way(
    tmp_path: Path, workers: int, staleness: int, sparse: bool
) -> None:
    program = f"""
        import numpy as np
        import diml
        with diml.init(servers=1) as job:
            ps = job.parameter_server({staleness})
            table, ids = ps.table("t", 50, 4, sparse={sparse}), np.arange(0, 50, 7)
            own = np.zeros((len(ids), 4), np.float32)
            while ps.clock_now < 400:
                assert (table.get(ids) >= own).all()
                table.inc(ids, np.ones_like(own))
                own += 1
                ps.clock()
            ps.barrier()
            assert (table.get(ids) == 400 * ps.workers).all()
    """
    env = {"DIML_EVENTS": str(tmp_path / "log"), "DIML_SPARES": "0"}
    run_mpi(workers + 1, program, env=env, timeout_s=60).expect(0)
    told = [e for e in read_events(tmp_path / "log") if e.get("by") == "servers"]
    short = {event["uid"]: event["short"] for event in told}
    asked = 800 * workers
    if sparse:
        assert set(short.values()) == {0}
    else:
        # Where cores are shared an answer may be late, and then goes the long way.
        assert asked / 4 < short[workers] <= asked + 2 * workers
        assert min(short.values()) > 200 and max(short[w] for w in range(workers)) <= 802


def test_two_jobs_at_the_same_time_do_not_disturb_each_other() -> None:
    env = {"DIML_SERVERS": "1", "DIML_SPARES": "1"}
    args = ["--clocks", 30, "--pause", 0.01]
    with (
        start_mpi(4, COUNT, args=args, env=env) as first,
        start_mpi(4, COUNT, args=args, env={**env, "DIML_DRILL": "0,10,1,0"}) as second,
    ):
        ends = [job.wait(timeout_s=90).expect(0) for job in (first, second)]
    digests = [set(re.findall(r"digest (\d+) wrong 0", end.stdout)) for end in ends]
    assert len(digests[0]) == 1 and digests[0] == digests[1], ends[0].report() + ends[1].report()


LATE = """
import diml
with diml.init(servers=1) as job:
    ps = job.parameter_server()
    table = ps.table("t", 4, 2)
    if ps.worker == 1:
        job.barrier()  # the others never come: this worker is late for its clock
    ps.clock()
    table.get([0])
"""


def test_a_deadline_names_who_is_late_and_at_which_clock() -> None:
    env = {"DIML_SERVERS": "1", "DIML_DEADLINE": "10", "DIML_ON_FAILURE": "spare"}
    finished = run_mpi(4, LATE, env=env, timeout_s=90)
    assert finished.returncode != 0, finished.report()
    assert "server 0 waits for worker 1 at clock 0" in finished.stderr, finished.report()


MISUSE = """
import numpy as np
import diml
with diml.init(servers=1) as job:
    ps = job.parameter_server(reject_nonfinite=True)
    table = ps.table("t", 40, 2)
    kv = ps.kv("w", 40)
    for call in (
        lambda: table.get([40]),
        lambda: table.inc([3], [[1.0, np.nan]]),
        lambda: kv.push([3, 2], [1.0, 1.0]),
        lambda: ps.table("t", 41, 2),
        lambda: ps.table("u", 4, 2, rule="nothing"),
    ):
        try:
            call()
        except diml.errors.Misuse as error:
            print("refused:", error)
    table.inc([3], [[1.0, 2.0]])
    ps.clock()
    ps.barrier()
    assert table.get([3]).tolist() == [[2.0, 4.0]], "the server lives on"
    print("alive", ps.worker)
"""


def test_bad_calls_are_refused_where_they_are_made() -> None:
    program = MISUSE.replace("import diml\n", "import diml\nimport diml.errors\n", 1)
    finished = run_mpi(3, program, env={"DIML_SERVERS": "1"}, timeout_s=60).expect(0)
    assert finished.stdout.count("refused:") == 10, finished.report()
    assert finished.stdout.count("alive") == 2
    for words in ("'t' has rows 0..39, not 40", "of rows 3", "2 follows 3", "rows 40 against 41"):
        assert finished.stdout.count(words) == 2, finished.report()


def test_workers_that_disagree_are_told_so() -> None:
    program = """
    import diml
    with diml.init(servers=1) as job:
        job.parameter_server(staleness=job.rank).table("t", 4, 2)
    """
    finished = run_mpi(3, program, env={"DIML_SERVERS": "1"}, timeout_s=60)
    assert finished.returncode == 2, finished.report()
    assert "consistency" in finished.stderr, finished.report()


def test_many_workers_without_a_server_are_told_what_to_start() -> None:
    program = """
    import diml
    with diml.init() as job:
        job.parameter_server()
    """
    finished = run_mpi(2, program, timeout_s=60)
    assert finished.returncode == 2 and "--servers 1" in finished.stderr, finished.report()


MANY_ROWS = """
import numpy as np
import diml
with diml.init(servers=2) as job:
    ps = job.parameter_server(filters=FILTERS)
    table = ps.table("t", 60_000, 33)
    ids = np.random.default_rng(ps.worker).permutation(60_000)[:50_000]
    for clock in range(4):
        rows = table.get(ids)
        assert rows.shape == (50_000, 33) and (rows == clock * (ids[:, None] % 97)).all(), clock
        table.inc(np.arange(ps.worker, 60_000, 2), np.full((30_000, 33), 1.0)
                  * (np.arange(ps.worker, 60_000, 2)[:, None] % 97))
        ps.clock()
    print("as written", ps.worker)
"""


@pytest.mark.parametrize("filters", ["()", '("keys", "snappy")'])
def test_many_rows_of_several_servers_come_as_they_were_written(filters: str) -> None:
    program = MANY_ROWS.replace("FILTERS", filters)
    finished = run_mpi(4, program, env={"DIML_SERVERS": "2"}, timeout_s=90).expect(0)
    assert finished.stdout.count("as written") == 2, finished.report()
