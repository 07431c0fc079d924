"""The examples of the README run as they stand."""

from __future__ import annotations

import re

import pytest

from tests.helpers.mpi import CHECKOUT, run_mpi

EXAMPLES = re.findall(r"```python\n(.*?)```", (CHECKOUT / "README.md").read_text(), re.DOTALL)


def test_the_readme_has_an_example_of_each_way() -> None:
    for call in ("job.checkpoint(total)  #", "job.parameter_server", "run(job, program"):
        assert sum(call in example for example in EXAMPLES) == 1


@pytest.mark.parametrize("ranks", [None, 3])
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(example: str, ranks: int | None) -> None:
    finished = run_mpi(ranks, example, timeout_s=60).expect(0)
    assert finished.stdout.strip()
