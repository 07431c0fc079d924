"""Arrays in, arrays out: what is compiled. Must not know MPI, files or jobs.

Before the first compiled function of a process runs, numba loads its library, and with it asks
whether SciPy's BLAS is there, by importing it: a quarter of what the start of a rank takes. SciPy
is there (DiML needs it), so that once the question is answered without the import. Functions of a
user's own that do need BLAS import it when they are compiled. A numba that is built otherwise asks.
"""

from __future__ import annotations

from typing import Any

from numba.core import cpu


def _answer_once(contexts: Any) -> None:
    """Let the first load of numba's library take BLAS for granted."""
    load = contexts.load_additional_registries

    def first(context: Any) -> None:
        contexts.load_additional_registries = load
        from numba.np import linalg

        ask = linalg.ensure_blas
        linalg.ensure_blas = lambda: None
        try:
            load(context)
        finally:
            linalg.ensure_blas = ask

    contexts.load_additional_registries = first


if hasattr(getattr(cpu, "CPUContext", None), "load_additional_registries"):
    _answer_once(cpu.CPUContext)
