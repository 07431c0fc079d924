"""The API reference: what a program may call, from the docstrings.

Owns which names are public. Everything is read, nothing is run; importing some of it makes this
process an MPI process of its own.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from diml.errors import Misuse

# A module, then its public names; of a class all public members belong to it.
PUBLIC: dict[str, tuple[str, ...]] = {
    "diml": ("init", "Job", "Shrunk"),
    "diml.allreduce.reduce": ("Allreduce",),
    "diml.allreduce.engine": ("Engine",),
    "diml.allreduce.rabit": (
        "init", "finalize", "get_rank", "get_world_size", "tracker_print", "get_processor_name",
        "broadcast", "allreduce", "load_checkpoint", "checkpoint", "lazy_checkpoint",
        "version_number",
    ),
    "diml.ps.client": ("ParameterServer", "Table"),
    "diml.ps.options": ("Options",),
    "diml.ps.kv": ("KeyValues",),
    "diml.strads": (
        "run", "Program", "Policy", "policy_by_name", "solve_lasso", "Lasso", "ElasticNet",
        "LassoCV", "SparseLogistic",
    ),
    "diml.config": ("Settings",),
    "diml.errors": (
        "DimlError", "Misuse", "Mismatch", "DeadlineExceeded", "CorruptState", "GaveUp",
        "Resumable",
    ),
}  # fmt: skip
# Members that a program does not call: the framework and the jobs do.
INTERNAL = {
    "diml.allreduce.reduce.Allreduce": ("sit_down",),
    "diml.allreduce.engine.Engine": ("finish", "version"),
    "diml.ps.client.ParameterServer": ("close", "go_to", "open", "save_now"),
    "diml.ps.options.Options": ("of", "model", "check_same"),
    "diml.Job": ("world",),
}
# Classes whose objects have the members of others as their own.
HANDED_ON = {"diml.Job": ("diml.allreduce.reduce.Allreduce", "diml.allreduce.engine.Engine")}


@dataclass(frozen=True, slots=True)
class Entry:
    """One public name: its full name, what it is, its signature ("" where it has none), its
    docstring ("" where it has none)."""

    name: str
    thing: Any
    signature: str
    text: str


def entries() -> Iterator[Entry]:
    """All public names in the order of the reference."""
    for module_name, names in PUBLIC.items():
        module = importlib.import_module(module_name)
        for name in names:
            thing = getattr(module, name)
            yield _entry(f"{module_name}.{name}", thing)
            if inspect.isclass(thing):
                yield from _members(f"{module_name}.{name}", thing)


def _members(owner: str, kind: type) -> Iterator[Entry]:
    skipped = INTERNAL.get(owner, ())
    for name, member in vars(kind).items():
        if name.startswith("_") or name in skipped:
            continue
        if isinstance(member, property) or inspect.isfunction(member):
            yield _entry(f"{owner}.{name}", member)


def _entry(name: str, thing: Any) -> Entry:
    signature = ""
    called = thing.__init__ if inspect.isclass(thing) else thing
    if inspect.isfunction(called):
        found = inspect.signature(called)
        kept = [p for p in found.parameters.values() if p.name != "self"]
        signature = str(found.replace(parameters=kept)).replace("'", "")
        if inspect.isclass(thing):
            signature = signature.removesuffix(" -> None")
    return Entry(name, thing, signature, inspect.getdoc(thing) or "")


def markdown(wanted: str = "") -> str:
    """The reference, or the part of it whose names end with (or lie below) `wanted`.

    Raises Misuse where nothing is called so.
    """
    known = list(entries())
    found = [entry for entry in known if _fits(entry.name, wanted)]
    found = found or _inherited(known, wanted)
    if not found:
        raise Misuse(f"diml doc: nothing public is called {wanted!r}")
    parts = []
    for entry in found:
        kind = "property " if isinstance(entry.thing, property) else ""
        kind = "class " if inspect.isclass(entry.thing) else kind
        parts.append(f"### {kind}`{entry.name}{entry.signature}`\n\n{entry.text}\n")
    return "\n".join(parts)


def _inherited(known: list[Entry], wanted: str) -> list[Entry]:
    """The entries of `Class.member` where the class hands on what is another one's."""
    owner, _, member = wanted.rpartition(".")
    names = [
        f"{source}.{member}"
        for heir, sources in HANDED_ON.items()
        if owner and f".{heir}".endswith(f".{owner}")
        for source in sources
    ]
    return [entry for entry in known if entry.name in names]


def _fits(name: str, wanted: str) -> bool:
    return f".{name}".endswith(f".{wanted}") or f".{wanted}." in f".{name}." or not wanted
