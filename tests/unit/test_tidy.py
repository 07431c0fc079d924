"""The source itself: sizes, no left-over notes, absolute imports, a docstring on each module."""

from __future__ import annotations

import ast
import re
import subprocess

import pytest

from tests.helpers.mpi import CHECKOUT

LINES_MAX = 400
FUNCTION_LINES_MAX = 70
# Functions that may be longer, as "path::name", each with its reason.
LONG_FUNCTIONS: dict[str, str] = {}

_NOTE = re.compile(r"\b(TODO|FIXME|XXX)\b")


def _sources() -> list[str]:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "*.py"],
        cwd=CHECKOUT,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode == 0:
        names = listed.stdout.split()
    else:  # an unpacked archive has no git
        names = [str(p.relative_to(CHECKOUT)) for p in CHECKOUT.rglob("*.py")]
        names = [name for name in names if not name.startswith((".", "build"))]
    return sorted(name for name in names if (CHECKOUT / name).exists())


SOURCES = _sources()


def problems(name: str, source: str) -> list[str]:
    """All that is untidy in one file, as `path:line: what`."""
    found = []
    lines = source.count("\n")
    if lines > LINES_MAX:
        found.append(f"{name}:{LINES_MAX}: the file has {lines} lines, {LINES_MAX} at most")
    tree = ast.parse(source)
    if tree.body and ast.get_docstring(tree) is None:
        found.append(f"{name}:1: no module docstring")
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            length = (node.end_lineno or node.lineno) - node.lineno + 1
            if length > FUNCTION_LINES_MAX and f"{name}::{node.name}" not in LONG_FUNCTIONS:
                found.append(f"{name}:{node.lineno}: {node.name} has {length} lines")
        if isinstance(node, ast.ImportFrom) and node.level:
            found.append(f"{name}:{node.lineno}: relative import")
    for number, line in enumerate(source.splitlines(), start=1):
        if _NOTE.search(line):
            found.append(f"{name}:{number}: a note in place of an issue")
    return found


@pytest.mark.parametrize("name", [s for s in SOURCES if s != "tests/unit/test_tidy.py"])
def test_file_is_tidy(name: str) -> None:
    found = problems(name, (CHECKOUT / name).read_text())
    assert not found, "\n".join(found)


def test_untidy_source_is_seen() -> None:
    long_function = "def f():\n" + "    pass\n" * 71
    source = f"from . import x\n# TODO later\n{long_function}" + "\n" * 400
    words = " ".join(problems("a.py", source))
    for word in ("has 474 lines", "no module docstring", "f has 72", "relative", "a note"):
        assert word in words


def test_excuses_are_used() -> None:
    for excuse in LONG_FUNCTIONS:
        assert (CHECKOUT / excuse.partition("::")[0]).exists(), excuse
