"""Arrays in, arrays out: what is compiled. Must not know MPI, files or jobs.

Before the first compiled function of a process runs, numba loads its library, and with it asks
whether SciPy's BLAS is there, by importing it: a quarter of what the start of a rank takes. SciPy
is there (DiML needs it), so that once the question is answered without the import. Functions of a
user's own that do need BLAS import it when they are compiled.
"""

from __future__ import annotations

from typing import Any

from numba.core.cpu import CPUContext

_contexts: Any = CPUContext
_load = _contexts.load_additional_registries


def _load_without_asking(context: Any) -> None:
    """In place of `CPUContext.load_additional_registries`, the first time."""
    _contexts.load_additional_registries = _load
    from numba.np import linalg

    ask = linalg.ensure_blas
    linalg.ensure_blas = lambda: None
    try:
        _load(context)
    finally:
        linalg.ensure_blas = ask


_contexts.load_additional_registries = _load_without_asking
