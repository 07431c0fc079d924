"""The second program on the STRADS interface: CCD descends, and finds what it was made from."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from diml.data.triplets import Triplets
from diml.errors import Misuse
from diml.strads import Alone, policy_by_name, run
from diml.strads.ccd import Factorization


def planted(seed: int = 0) -> tuple[Triplets, tuple[int, int]]:
    rng = np.random.default_rng(seed)
    L, R = rng.normal(size=(40, 3)), rng.normal(size=(30, 3))
    rows, cols = np.nonzero(rng.random((40, 30)) < 0.6)
    values = (L @ R.T)[rows, cols].astype(np.float32)
    return Triplets(rows.astype(np.int64), cols.astype(np.int64), values, 40, 30), (40, 30)


def fit(
    policy: str = "cyclic", block: int = 1, passes: int = 40
) -> tuple[Factorization, list[float]]:
    entries, shape = planted()
    seen: list[float] = []
    program = Factorization(
        entries,
        shape,
        3,
        decay=1e-3,
        passes=passes,
        listener=lambda passes, square, objective: seen.append(objective),
    )
    run(Alone(), program, policy=policy_by_name(policy, program.variables, block=block))
    return program, seen


def test_the_objective_falls_to_nothing_on_planted_data() -> None:
    program, seen = fit()
    assert len(seen) == 40
    assert all(after <= before * (1 + 1e-9) for before, after in pairwise(seen))
    entries = program.entries
    fitted = (program.L.T @ program.R)[entries.rows, entries.cols]
    assert np.sqrt(np.mean((fitted - entries.values) ** 2)) < 0.05


def test_any_policy_schedules_its_turns() -> None:
    _, seen = fit("priority", passes=60)
    assert seen[-1] < 0.2 * seen[0]


def test_one_turn_is_the_closed_form() -> None:
    entries, shape = planted()
    program = Factorization(entries, shape, 2, decay=0.5, passes=1, seed=3)
    program.start(None)
    r = program.R[0].copy()
    block = np.array([0])
    program.pull(block, program.push(block))
    for i in range(shape[0]):
        mine = entries.rows == i
        held = r[entries.cols[mine]]
        rest = entries.values[mine] - program.L[1, i] * program.R[1, entries.cols[mine]]
        expected = (rest @ held) / (0.5 + held @ held)
        assert program.L[0, i] == pytest.approx(expected, rel=1e-9)


def test_bad_settings_are_refused() -> None:
    entries, shape = planted()
    with pytest.raises(Misuse, match="K ≥ 1"):
        Factorization(entries, shape, 0, decay=0.0, passes=1)
