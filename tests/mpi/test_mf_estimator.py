"""The estimator inside a program under mpirun; a worker killed while it fits."""

from __future__ import annotations

import re

import pytest

from tests.helpers.mpi import run_mpi

PROGRAM = """
    import numpy as np
    import diml
    from diml.data.planted import Planted, planted
    from diml.jobs.mf import MatrixFactorization

    with diml.init() as job:
        version, total, _ = job.load_checkpoint()
        t = planted(Planted(200, 100, 8000, rank=3, noise=0.1, seed=1))
        X = np.column_stack([t.rows, t.cols])
        model = MatrixFactorization(3, step_size=0.1, max_iter=20, job=job).fit(X, t.values)
        score = model.score(X, t.values)
        print(f"[{job.rank}] {model.components_.sum():.9g} {score:.6f}", flush=True)
        job.checkpoint(model.rmse_)
"""


def test_all_workers_get_one_model_also_after_a_death() -> None:
    found = []
    for env in ({}, {"DIML_DRILL": "1,0,7,0", "DIML_SPARES": "1"}):
        done = run_mpi(3 + len(env) // 2, PROGRAM, env=env, timeout_s=60).expect()
        said = re.findall(r"\[(\d)\] (.*)", done.stdout)
        assert sorted(rank for rank, _ in said) == ["0", "1", "2"], done.report()
        assert len({text for _, text in said}) == 1
        found.append(said[0][1])
    assert found[0] == found[1]
    assert float(found[0].split()[1]) == pytest.approx(1, abs=0.1)
