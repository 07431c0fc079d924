"""The compute threads of one worker.

Owns the pool, and who waits for whom. Must not know matrices: which pieces may be worked on
together is said by their order (`diml.kernels.mf_grid`). Calls must release the interpreter lock,
as compiled kernels do, to gain anything.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import islice
from typing import Any

from diml.kernels.mf_grid import TURNS


class Team:
    """So many threads, the caller's own among them."""

    def __init__(self, threads: int) -> None:
        self._threads = threads
        self._pool = ThreadPoolExecutor(threads - 1) if threads > 1 else None

    def work(self, call: Callable[..., Any], pieces: Iterable[Any], *arguments: Any) -> list[Any]:
        """Call `call(*piece, *arguments)` for each piece.

        Several threads take them threads * threads * TURNS together, in the order of
        `mf_grid.dealt`. Returns the results in the order of the pieces.
        """
        if self._pool is None:
            return [call(*piece, *arguments) for piece in pieces]
        results, source = [], iter(pieces)
        while cells := list(islice(source, self._threads * self._threads * TURNS)):
            results += self._together(call, cells, arguments)
        return results

    def _together(
        self, call: Callable[..., Any], cells: Sequence[Any], arguments: tuple[Any, ...]
    ) -> list[Any]:
        """Each thread works through its own cells. It waits only where another one has not done
        what comes before: the next thread's cell of TURNS turns ago has the same columns."""
        assert self._pool is not None
        threads = self._threads
        results: list[Any] = [None] * len(cells)
        done, failed = [0] * threads, threading.Event()
        changed = threading.Condition()

        def work(thread: int) -> None:
            after = (thread + 1) % threads
            try:
                for turn in range(len(cells) // threads):
                    with changed:
                        changed.wait_for(lambda: done[after] > turn - TURNS or failed.is_set())  # noqa: B023
                    if failed.is_set():
                        return
                    place = turn * threads + thread
                    results[place] = call(*cells[place], *arguments)
                    with changed:
                        done[thread] = turn + 1
                        changed.notify_all()
            except BaseException:
                with changed:
                    failed.set()
                    changed.notify_all()
                raise

        others = [self._pool.submit(work, thread) for thread in range(1, threads)]
        try:
            work(0)
        finally:
            errors = [future.exception() for future in others]
        for error in errors:
            if error is not None:
                raise error
        return results
