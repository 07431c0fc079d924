"""The API reference: every public name says what it needs and what it raises."""

from __future__ import annotations

import ast
import inspect
import re
import textwrap

import pytest

from diml.cli import main
from diml.docs.reference import Entry, entries

ENTRIES = list(entries())
_ARRAYS = re.compile(r"NDArray|ArrayLike|Array\b|Floats|Integers")
_SHAPE = re.compile(
    r"\(len\(|\(\w[^()]*,[^()]*\)|0-d|shape|array|dtype|float(32|64)|int64|rows?\b", re.I
)


def _function(entry: Entry) -> ast.FunctionDef | None:
    thing = entry.thing.fget if isinstance(entry.thing, property) else entry.thing
    if not inspect.isfunction(thing):
        return None
    node = ast.parse(textwrap.dedent(inspect.getsource(thing))).body[0]
    return node if isinstance(node, ast.FunctionDef) else None


def _raised(node: ast.FunctionDef) -> set[str]:
    """Errors that the function itself raises by name."""
    calls = [n.exc for n in ast.walk(node) if isinstance(n, ast.Raise) and n.exc is not None]
    names = {c.func.id for c in calls if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)}
    return names - {"NotImplementedError"}


@pytest.mark.parametrize("entry", ENTRIES, ids=[entry.name for entry in ENTRIES])
def test_a_public_name_is_documented(entry: Entry) -> None:
    assert entry.text, "no docstring"
    first = entry.text.split("\n\n")[0]
    assert first[0].isupper() or first[0] in "(`'\"½0123456789", first
    assert re.search(r"[.:)]$", first.strip()), first
    node = _function(entry)
    if node is None:
        return
    for name in _raised(node):
        assert name in entry.text, f"raises {name}, and does not say so"
    annotations = [a.annotation for a in node.args.args if a.annotation is not None]
    if any(_ARRAYS.search(ast.unparse(annotation)) for annotation in annotations):
        assert _SHAPE.search(entry.text), "takes an array, and does not say of which shape"
    for argument in (*node.args.args, *node.args.kwonlyargs):
        if argument.arg.endswith("_s") or argument.arg == "seconds":
            assert "second" in entry.text or " long" in entry.text, "a time without its unit"


def test_the_reference_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["doc"]) == 0
    text = capsys.readouterr().out
    assert all(f"`{entry.name}" in text for entry in ENTRIES)
    assert main(["doc", "Table.get"]) == 0
    assert capsys.readouterr().out.startswith("### `diml.ps.client.Table.get(ids: ArrayLike)")
    assert main(["doc", "nonsense"]) == 2
    assert capsys.readouterr().err == "diml: diml doc: nothing public is called 'nonsense'\n"


def test_the_event_log_is_described(capsys: pytest.CaptureFixture[str]) -> None:
    from diml.events import FIELDS, FIXED

    assert main(["doc", "events"]) == 0
    text = capsys.readouterr().out
    for name in (*FIXED, *FIELDS, *(field for fields in FIELDS.values() for field in fields)):
        assert re.search(rf"\b{name}\b", text), name


@pytest.mark.parametrize("name", ["Job.allreduce", "Job.checkpoint", "diml.Job.barrier"])
def test_what_a_job_hands_on_is_found_by_its_name(
    name: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doc", name]) == 0
    assert f".{name.rpartition('.')[2]}(" in capsys.readouterr().out
