"""The compute threads of one worker.

Owns the pool. Must not know matrices: what may be worked on together is the caller's knowledge.
Calls must release the interpreter lock, as compiled kernels do, to gain anything.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any


class Team:
    """So many threads, the caller's own among them."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def work(self, call: Callable[..., Any], pieces: Iterable[Any], *arguments: Any) -> list[Any]:
        """Call `call(*piece, *arguments)` for each piece, so many as there are threads together.

        Returns the results in the order of the pieces. The next pieces are asked for when the
        last ones are done.
        """
        results = []
        source = iter(pieces)
        while together := list(islice(source, self._threads)):
            mine, *others = together
            due = []
            if self._pool is not None:
                due = [self._pool.submit(call, *piece, *arguments) for piece in others]
            results.append(call(*mine, *arguments))
            results += [future.result() for future in due]
        return results
