"""The README, followed top to bottom: its examples run, its commands give what it shows."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.mpi import CHECKOUT, run_mpi

README = (CHECKOUT / "README.md").read_text()
EXAMPLES = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
BLOCKS = re.findall(r"(?m)^```(\w*)\n(.*?)^```$", README, re.DOTALL)
# Another test run inside this one: `make test` is what runs this.
NOT_AGAIN = re.compile(r"(?m)^make test .*\n")


def test_the_readme_has_an_example_of_each_way() -> None:
    for call in ("job.checkpoint(total)  #", "job.parameter_server", "run(job, program"):
        assert sum(call in example for example in EXAMPLES) == 1
    assert {language for language, _ in BLOCKS} == {"sh", "python", ""}


@pytest.mark.parametrize("ranks", [None, 3])
@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_runs(example: str, ranks: int | None) -> None:
    finished = run_mpi(ranks, example, timeout_s=60).expect(0)
    assert finished.stdout.strip()


def _shell(block: str, folder: Path) -> str:
    """What the block prints, run by one shell in a folder that looks like a fresh checkout."""
    script = NOT_AGAIN.sub("", block).replace("make run ", "make -o install run VENV=.venv ")
    left = {k: v for k, v in os.environ.items() if not k.startswith(("DIML_", "OMPI_", "PMIX_"))}
    env = {
        **left,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "PYTHONPATH": str(folder),
        "OMPI_ALLOW_RUN_AS_ROOT": "1",
        "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
    }
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", script], cwd=folder, env=env, timeout=280,
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, f"{script}\n{done.stdout}\n{done.stderr}"
    return done.stdout


def _pattern(line: str) -> str:
    """The line with any numbers, any units of time and size, and any amount of space in it."""
    parts = [re.escape(part) for part in re.split(r"\d[\d.,]*(?:e-\d+)?", line.strip())]
    pattern = r"[\d.,e-]+".join(parts)
    pattern = re.sub(r"\b(ms|s|MB|kB)\b", "(ms|s|MB|kB|B)", pattern)
    return re.sub(r"(\\ )+", r"\\s+", pattern)


def test_its_commands_give_what_it_says(tmp_path: Path) -> None:
    for name in ("diml", "Makefile", "pyproject.toml"):
        (tmp_path / name).symlink_to(CHECKOUT / name)
    (tmp_path / ".venv").symlink_to(sys.prefix)
    printed, blocks = "", 0
    for language, block in BLOCKS:
        if language == "sh":
            printed, blocks = _shell(block, tmp_path), blocks + 1
        elif language == "" and block.startswith("ok "):
            printed = _shell("diml doctor || true", tmp_path)
            for label in re.findall(r"(?m)^ok +([^:]+):", block):
                assert re.search(rf"(?m)^\S+ +{label}:", printed), f"{label}\n{printed}"
        elif language == "" and not block.startswith("a9a"):
            # The numbers are this run's; which process does what may differ.
            lines = [line for line in block.splitlines() if not re.match(r" +\d+ ", line)]
            for line in lines:
                assert re.search(_pattern(line), printed), f"{line}\n--- is not in\n{printed}"
    assert blocks >= 4
    assert (tmp_path / "out/run.html").stat().st_size > 10_000
    rows = (tmp_path / "out/blocks.L").read_text().split("\n")
    assert len(rows) == 10 and len(rows[0].split()) == 3


def test_links_lead_somewhere() -> None:
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (CHECKOUT / target).exists(), target
