"""The tests that the README names exist."""

from __future__ import annotations

import re

from tests.helpers.mpi import CHECKOUT


def test_every_test_that_the_readme_names_exists() -> None:
    named = re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", (CHECKOUT / "README.md").read_text())
    assert len(named) > 10
    for path, test in named:
        text = (CHECKOUT / path).read_text()
        assert not test or f"def {test}(" in text, f"{path}::{test}"
