"""`diml doc`: the documents that come with the package, on the terminal.

Owns the topics. Runs no job.
"""

from __future__ import annotations

import argparse
import inspect
from collections.abc import Callable, Sequence
from importlib.resources import files
from typing import NoReturn

from diml.docs import reference
from diml.errors import Misuse


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Misuse(f"{message} (see {self.prog} --help)")


def _events() -> str:
    from diml import events

    return inspect.getdoc(events) or ""


def coming_from() -> str:
    """Tables of old names and new ones."""
    return files("diml.docs").joinpath("coming_from.md").read_text(encoding="utf-8")


TOPICS: dict[str, tuple[str, Callable[[], str]]] = {
    "api": ("every public name: shapes, units, errors", reference.markdown),
    "coming-from": ("old names and new ones: Rabit, Petuum, ps-lite, STRADS", coming_from),
    "events": ("the event log: every kind of line and its fields", _events),
}


def main(arguments: Sequence[str]) -> int:
    """Print a topic, or the reference of one name; returns 0. Raises Misuse for neither."""
    topics = "; ".join(f"{name}: {words}" for name, (words, _) in TOPICS.items())
    parser = _Parser(prog="diml doc", description="Documents, as Markdown.")
    about = f"{topics}; or a name, such as Job.allreduce"
    parser.add_argument("topic", nargs="?", default="api", metavar="TOPIC", help=about)
    topic = parser.parse_args(arguments).topic
    print(TOPICS[topic][1]() if topic in TOPICS else reference.markdown(topic))
    return 0
