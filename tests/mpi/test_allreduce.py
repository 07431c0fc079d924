"""Every collective over real MPI, failure-free: values, dtypes, layouts, refusals, mismatches."""

from __future__ import annotations

import re

import pytest

from tests.helpers.mpi import run_mpi

VALUES = """
    import numpy as np, diml
    from diml.errors import Misuse
    with diml.init() as job:
        r, P = job.rank, job.size
        numeric = "?bBhHiIlLqQefdgFDG"
        for char in numeric:
            dtype = np.dtype(char)
            parts = [(np.arange(7) % 3 + q).astype(dtype) for q in range(P)]
            for op, twin in (("sum", np.add), ("prod", np.multiply), ("max", np.maximum),
                             ("min", np.minimum), ("bitor", np.bitwise_or)):
                defined = {"sum": "iufc", "prod": "biufc", "max": "biuf", "min": "biuf",
                           "bitor": "biu"}[op]
                try:
                    got = job.allreduce(parts[r], op)
                except Misuse as error:
                    assert dtype.kind not in defined and str(dtype) in str(error), (char, op)
                    continue
                assert dtype.kind in defined, (char, op)
                want = parts[0]
                for part in parts[1:]:
                    want = twin(want, part).astype(dtype)
                assert got.dtype == dtype and np.array_equal(got, want), (char, op, got, want)
        # Layouts: strided, Fortran, foreign byte order, 0-d, empty, numbers, lists.
        grid = np.arange(12.0).reshape(3, 4) + r
        total = P * np.arange(12.0).reshape(3, 4) + P * (P - 1) / 2
        assert np.array_equal(job.allreduce(grid[::2, ::-1]), total[::2, ::-1])
        assert np.array_equal(job.allreduce(np.asfortranarray(grid)), total)
        assert np.array_equal(job.allreduce(grid.astype(">f8")), total)
        assert job.allreduce(np.float64(2.5)) == 2.5 * P and job.allreduce(3) == 3 * P
        assert job.allreduce([1, r])[1] == P * (P - 1) // 2
        assert job.allreduce(np.empty((0, 3))).shape == (0, 3)
        # A function of two arrays need be neither commutative nor elementwise.
        def compose(f, g):
            return g[f]
        rotation = np.roll(np.arange(5), r + 1)
        swapped = np.array([1, 0, 2, 3, 4]) if r == 1 else rotation
        want = None
        for q in range(P):
            part = np.array([1, 0, 2, 3, 4]) if q == 1 else np.roll(np.arange(5), q + 1)
            want = part if want is None else compose(want, part)
        assert np.array_equal(job.allreduce(swapped, compose), want)
        # It may give one of its arguments as it is.
        heaviest = job.allreduce(np.array([9 if r == 1 else r, r]), lambda f, g: max(f, g, key=min))
        assert heaviest.tolist() == [P - 1, P - 1] if P > 2 else True
        first = job.allreduce(np.array([r == min(1, P - 1), r]), lambda f, g: g if g[0] else f)
        assert first.tolist() == [1, min(1, P - 1)]
        # out may be the array itself; prepare fills it first; results are read-only.
        mine = np.zeros(4)
        def fill(into):
            into[:] = r + 1
        back = job.allreduce(mine, prepare=fill, out=mine)
        assert back is mine and mine[0] == P * (P + 1) / 2
        fixed = job.allreduce(np.ones(3))
        try:
            fixed[0] = 9.0
            raise AssertionError("a result could be changed")
        except ValueError:
            pass
        # The same bits on all ranks, whatever the numbers.
        rng = np.random.default_rng(r)
        odd = np.array([np.nan, -np.nan, 0.0, -0.0, np.inf, -np.inf, 1e-300, 1.0])
        for size in (5, 3000, 300_000):
            for op in ("sum", "max", "min"):
                got = job.allreduce(rng.choice(odd, size) * rng.random(size), op)
                assert len(set(job.allgather(got.tobytes()))) == 1
        # Broadcasts of arrays and objects, small and large, from every root.
        for root in range(P):
            for size in (0, 3, 100_000):
                sent = np.arange(size, dtype=np.float32).reshape(-1, 1) + root
                got = job.broadcast(sent if r == root else None, root)
                assert got.shape == (size, 1) and np.array_equal(got, sent)
            for thing in ({"a": [1, (2, None)]}, "x" * 5000, {1, 2}, None):
                assert job.broadcast(thing if r == root else 0, root) == thing
            source = np.ones(5)
            got = job.broadcast(source, root)
            source[:] = 7
            assert got.tolist() == [1.0] * 5 and not got.flags.writeable
        # Allgather: lengths may differ, 0-d counts as one, objects come as a list.
        rows = job.allgather(np.full((r, 2), r, np.int16))
        assert rows.dtype == np.int16 and np.array_equal(rows[:, 0], np.repeat(range(P), range(P)))
        assert job.allgather(np.float32(r)) == list(range(P))
        assert job.allgather(np.array(r)).tolist() == list(range(P))
        assert job.allgather({"rank": r}) == [{"rank": q} for q in range(P)]
        job.barrier()
        # Many calls: past the comparison of histories, with recycled buffers.
        job.load_checkpoint()
        for version in range(3):
            for i in range(150):
                assert job.allreduce(np.full(10, i, np.int32))[0] == P * i
            job.checkpoint({"w": np.ones(3)}, lazy=version == 1)
        assert job.version == 3
        job.log("all values are right")
"""


@pytest.mark.parametrize("ranks", [1, 3, 4])
def test_values(ranks: int) -> None:
    finished = run_mpi(ranks, VALUES, timeout_s=90).expect(0)
    assert finished.stdout.count("all values are right") == ranks


def test_large_worlds_of_small_arrays_use_a_tight_log() -> None:
    program = """
        import numpy as np, diml
        with diml.init(log_budget_bytes=8000, drills="1,0,40,0", spares=1, replicas=1) as job:
            job.load_checkpoint()
            total = 0.0
            for i in range(60):
                total += job.allreduce(np.full(100, float(i)))[0]
            print(job.rank, job.incarnation, total)
    """
    finished = run_mpi(5, program, timeout_s=60).expect(1)
    assert "the result of version 0, collective 0 is gone" in finished.stderr
    finished = run_mpi(5, program.replace("8000", "40000"), timeout_s=60).expect(0)
    assert "1 1 7080.0" in finished.stdout


DIVERGES = {
    "op": """
        job.allreduce(np.ones(4), "max" if job.rank == 1 else "sum")
    """,
    "count": """
        job.allreduce(np.ones(5 if job.rank == 1 else 4))
    """,
    "count of an earlier call": """
        job.allreduce(np.ones(4))
        job.allreduce(np.ones(5))
        job.allreduce(np.ones(5 if job.rank == 1 else 4))
    """,
    "root": """
        job.broadcast(np.ones(4), 1 if job.rank == 1 else 0)
    """,
    "kind": """
        if job.rank == 1:
            job.barrier()
        else:
            job.allreduce(np.ones(4))
    """,
    "one more": """
        if job.rank == 1:
            job.allreduce(np.ones(4))
    """,
}


def program_of(body: str) -> str:
    lines = "\n".join(" " * 8 + line.strip("\n")[8:] for line in body.splitlines() if line.strip())
    return (
        "import numpy as np, diml\n"
        "with diml.init(check=CHECK, deadline_s=DEADLINE, frozen_deadline_s=2.0) as job:\n"
        "    job.load_checkpoint()\n"
        "    for step in range(3):\n"
        "        job.allreduce(np.ones(2))\n"
        f"{lines}\n"
        "        job.checkpoint({'step': step})\n"
        "        print('committed', flush=True)\n"
    )


@pytest.mark.parametrize("check", [True, False])
@pytest.mark.parametrize("what", DIVERGES)
def test_a_divergence_names_both_call_sites_before_the_next_commit(what: str, check: bool) -> None:
    # Only without the check may the deadline have to be waited for.
    program = program_of(DIVERGES[what]).replace("CHECK", str(check))
    program = program.replace("DEADLINE", "50.0" if check else "5.0")
    finished = run_mpi(3, program, timeout_s=60).expect(1)
    assert "committed" not in finished.stdout
    sites = set(re.findall(r"program\.py:(\d+)", finished.stderr))
    alike = what in ("op", "root") or what.startswith("count")
    assert len(sites) == (1 if alike else 2), finished.report()
    assert "rank" in finished.stderr
    assert "Traceback" not in finished.stderr


@pytest.mark.parametrize(("ranks", "sizes"), [(2, (4, 5)), (3, (1_000_000, 10))])
def test_arrays_of_other_sizes_are_found_before_mpi_is_shown_them(
    ranks: int, sizes: tuple[int, int]
) -> None:
    # Open MPI gave one of them part of the sum as all of it, or wrote past the end of an array.
    program = f"""
        import numpy as np, diml
        with diml.init() as job:
            job.load_checkpoint()
            job.allreduce(np.ones(2))
            total = job.allreduce(np.ones({sizes}[job.rank == 1]))
            print("got", total[0], flush=True)
    """
    finished = run_mpi(ranks, program, timeout_s=60).expect(1)
    assert not finished.stdout
    for size in sizes:
        assert f"(allreduce sum float64 ({size},))" in finished.stderr, finished.report()
    assert len(finished.stderr.strip().splitlines()) <= 2, finished.report()


@pytest.mark.parametrize(
    ("call", "words"),
    [
        ("job.allreduce(np.array(['a']))", "not dtype <U1"),
        ("job.load_checkpoint(); job.checkpoint({'opt': job})", 'model["opt"] is a diml.job.Job'),
    ],
)
def test_misuse_is_one_line_and_status_2(call: str, words: str) -> None:
    program = f"import numpy as np, diml\nwith diml.init() as job:\n    {call}\n"
    finished = run_mpi(2, program, timeout_s=60).expect(2)
    assert words in finished.stderr
    assert len(finished.stderr.strip().splitlines()) == 1, finished.report()


def test_wrong_arguments_are_named_before_anything_is_sent() -> None:
    program = """
        import numpy as np, diml
        from diml.errors import Misuse
        fixed = np.ones(2)
        fixed.flags.writeable = False
        with diml.init() as job:
            for call, words in (
                (lambda: job.checkpoint(1), "call load_checkpoint first"),
                (lambda: job.load_checkpoint() and job.load_checkpoint(), "called twice"),
                (lambda: job.checkpoint(1, local={1: {2}}), "local[1]"),
                (lambda: job.checkpoint(1, local=1, lazy=True), "no local state"),
                (lambda: job.allreduce(np.ones(2), "mean"), "not 'mean'"),
                (lambda: job.allreduce(np.ones(2), out=np.ones(3)), "out is float64"),
                (lambda: job.broadcast(1, root=7), "root 7 is not a rank"),
                (lambda: job.broadcast(1, root="x"), "root 'x' is not a rank"),
                (lambda: job.broadcast(1, root=0.5), "root 0.5 is not a rank"),
                (lambda: job.allreduce([[1, 2], [3]]), "inhomogeneous"),
                (lambda: job.allreduce(np.ones(2), out=[0, 0]), "out is no array but a list"),
                (lambda: job.allreduce(np.ones(2), out=fixed), "out is read-only"),
                (lambda: job.allreduce(np.ones(2), prepare=3), "prepare is no function but 3"),
                (lambda: job.allgather(lambda: 0), "a function cannot be sent to other ranks"),
            ):
                try:
                    call()
                except Misuse as error:
                    assert words in str(error), (words, error)
                else:
                    raise AssertionError(words)
            assert job.allreduce(np.ones(1))[0] == job.size
        for name in ("allreduce", "broadcast", "barrier", "parameter_server"):
            try:
                getattr(job, name)(np.ones(1))
            except Misuse as error:
                assert "the job is over" in str(error)
            else:
                raise AssertionError(name)
    """
    run_mpi(2, program, timeout_s=60).expect(0)


@pytest.mark.parametrize(
    ("function", "gives"),
    [("lambda a, b: (a + b) / 2", "float64 (2,)"), ("lambda a, b: (a + b)[:1]", "int64 (1,)")],
)
def test_a_function_that_gives_what_the_array_cannot_hold(function: str, gives: str) -> None:
    program = f"""
        import numpy as np, diml
        with diml.init() as job:
            job.allreduce(np.array([1, 2]), {function})
    """
    finished = run_mpi(2, program, timeout_s=60).expect(2)
    words = f"diml: allreduce: the function gives {gives}, the arrays are int64 (2,)"
    assert finished.stderr.strip().splitlines() == [words]


@pytest.mark.parametrize(
    ("end", "status", "words"),
    [
        ("pass", 0, ""),
        ("raise ValueError('the mistake')", 1, "ValueError: the mistake"),
        ("job.allreduce(np.array(['a']))", 2, "diml: allreduce takes numeric arrays"),
        ("sys.exit(0)", 1, "job.py:"),
    ],
)
def test_a_program_without_the_block_neither_hangs_nor_is_lost(
    end: str, status: int, words: str
) -> None:
    program = f"""
        import sys
        import numpy as np, diml
        job = diml.init()
        if job.rank == 1:
            {end}
        job.allreduce(np.ones(2))
        print("through")
    """
    finished = run_mpi(3, program, timeout_s=60).expect(status)
    assert words in finished.stderr and finished.stderr.count("Traceback") <= 1
    if status == 0:
        assert finished.stdout.count("through") == 3


def test_allgather_of_things_that_do_not_go_together() -> None:
    program = """
        import numpy as np, diml
        with diml.init() as job:
            job.allgather(np.ones((2, job.rank + 1)))
    """
    finished = run_mpi(2, program, timeout_s=60).expect(1)
    assert "rank 0 gives float64 (2, 1), rank 1 gives float64 (2, 2)" in finished.stderr


def test_rabits_python_example_runs_by_changing_its_import() -> None:
    program = """
        import numpy as np
        from diml.allreduce import rabit
        rabit.init()
        rabit.init()
        rank, n = rabit.get_rank(), rabit.get_world_size()
        data = np.ones(10) * rank
        version, model, local = rabit.load_checkpoint(True)
        if version == 0:
            model, local = np.zeros(10), np.ones(10)
        else:
            rabit.tracker_print(f"rank {rank} comes back at version {version}")
        for i in range(version, 3):
            model = rabit.allreduce(data + model + local, rabit.SUM)
            word = rabit.broadcast({"round": i} if rank == 1 else None, 1)
            assert word == {"round": i}
            ours = rabit.broadcast(np.arange(3) if rank == 0 else None, 0)
            ours += 1
            local[:] = i
            rabit.checkpoint(model, local)
        assert rabit.version_number() == 3
        # M' = n (M + L) + n (n - 1) / 2 with L = 1, 0, 1
        want = 0
        for held in (1, 0, 1):
            want = n * (want + held) + n * (n - 1) // 2
        assert (model == want).all(), (model, want)
        rabit.tracker_print("right")
        rabit.finalize()
    """
    env = {"DIML_SPARES": "2", "DIML_DRILL": "1,1,0,0 0,2,1,0"}
    finished = run_mpi(6, program, env=env, timeout_s=60).expect(0)
    assert finished.stdout.count("right") == 4
    assert "rank 1 comes back at version 1" in finished.stdout
    assert "rank 0 comes back at version 2" in finished.stdout


def test_an_uncaught_exception_in_a_rabit_program_ends_all_ranks() -> None:
    program = """
        from diml.allreduce import rabit
        rabit.init()
        if rabit.get_rank() == 1:
            raise RuntimeError("the user's own mistake")
        rabit.load_checkpoint()
        rabit.broadcast(1, 1)
        rabit.finalize()
    """
    finished = run_mpi(3, program, timeout_s=60).expect(1)
    assert finished.stderr.count("RuntimeError: the user's own mistake") == 1
