"""Imports go down only, and only diml/world talks to MPI: held by walking the source."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.helpers.mpi import CHECKOUT

PACKAGE = CHECKOUT / "diml"

# From the top. A module may import its own part and parts of lower floors; parts of one floor do
# not know each other. The public face (`import diml`) hides the three ways from the jobs above.
FLOORS: tuple[tuple[str, ...], ...] = (
    ("cli",),
    ("jobs", "report", "docs"),
    ("diml", "job"),
    ("ending",),
    ("ps", "strads"),
    ("allreduce",),
    ("checkpoint",),
    ("world",),
    ("kernels", "data"),
    ("config", "estimator", "events", "exports"),
    ("drill",),
    ("errors",),
)
# Modules that stand on another floor than their folder, and why.
MOVED = {"diml.allreduce.rabit": ("diml", "a public face: Rabit's names for `diml.init` and Job")}
# Two parts of one floor that may know each other, and why.
SAME_FLOOR = {
    ("jobs", "report"): "a job shows its progress",
    ("diml", "job"): "the face is what job.py defines",
}


def _modules() -> Iterator[tuple[str, Path]]:
    for path in sorted(PACKAGE.rglob("*.py")):
        names = path.relative_to(CHECKOUT).with_suffix("").parts
        yield ".".join(names[:-1] if names[-1] == "__init__" else names), path


MODULES = dict(_modules())


def imported(source: str) -> Iterator[tuple[int, str]]:
    """Line and full name of all that a source imports anywhere, also inside functions.

    mpi4py's types may be named anywhere: what only a type checker imports does not run.
    """
    tree = ast.parse(source)
    checked_only = {
        id(child)
        for node in ast.walk(tree)
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING"
        for child in node.body
    }
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in names:
            if not (name.startswith("mpi4py.") and id(node) in checked_only):
                yield node.lineno, name


def part_of(name: str) -> str:
    """The part of the package that a module (or a name in it) belongs to; "diml" is the face."""
    for moved, (part, _) in MOVED.items():
        if name == moved or name.startswith(f"{moved}."):
            return part
    parts = [word for word in name.split(".")[1:2] if (PACKAGE / word).is_dir()]
    if not parts and len(name.split(".")) > 1 and (PACKAGE / f"{name.split('.')[1]}.py").exists():
        parts = [name.split(".")[1]]
    return parts[0] if parts else "diml"


def floor_of(part: str) -> int:
    return next(number for number, parts in enumerate(FLOORS) if part in parts)


def violation(module: str, target: str) -> str | None:
    """Why `module` may not import `target`, or None."""
    mine = part_of(module)
    if target.split(".")[0] == "mpi4py":
        return None if mine == "world" else "only diml/world imports mpi4py"
    if target.split(".")[0] != "diml":
        return None
    theirs = part_of(target)
    if mine == theirs or (mine, theirs) in SAME_FLOOR:
        return None
    if floor_of(theirs) <= floor_of(mine):
        return f"{mine} may not import {theirs}: imports go down only"
    return None


def test_every_part_has_a_floor() -> None:
    known = {part for parts in FLOORS for part in parts}
    assert {part_of(module) for module in MODULES} <= known


@pytest.mark.parametrize("module", MODULES)
def test_imports_go_down_only(module: str) -> None:
    found = [
        f"{MODULES[module]}:{line}: {reason}"
        for line, target in imported(MODULES[module].read_text())
        if (reason := violation(module, target)) is not None
    ]
    assert not found, "\n".join(found)


@pytest.mark.parametrize(
    ("module", "target"),
    [
        ("diml.world.repair", "diml.allreduce.log"),
        ("diml.ps.client", "diml.strads"),
        ("diml.kernels.mf", "diml.world.link"),
        ("diml.ps.client", "diml.init"),
        ("diml.allreduce.engine", "diml.job"),
        ("diml.allreduce.engine", "diml.allreduce.rabit"),
        ("diml.errors", "diml.config.Settings"),
        ("diml.kernels.mf", "diml.data.planted"),
        ("diml.ps.server", "mpi4py.MPI"),
        ("diml", "mpi4py"),
    ],
)
def test_the_rule_can_fail(module: str, target: str) -> None:
    assert violation(module, target) is not None


def test_only_the_type_checker_sees_mpi4py_elsewhere() -> None:
    source = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from mpi4py import MPI\n"
    assert "mpi4py.MPI" not in [name for _, name in imported(source)]
    assert (4, "mpi4py.MPI") in imported(source + "from mpi4py import MPI\n")


def test_importing_diml_and_its_jobs_starts_no_mpi() -> None:
    """`diml.init` has to come before: it watches a replacement that hangs in MPI's start."""
    jobs = [module for module in MODULES if module.startswith("diml.jobs.")]
    program = f"""
import importlib, sys
for module in {["diml", *jobs]}:
    importlib.import_module(module)
    assert "mpi4py.MPI" not in sys.modules, f"{{module}} has started MPI"
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
