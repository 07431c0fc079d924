"""Arrays in, arrays out: what is compiled. Must not know MPI, files or jobs.

Before numba takes a compiled function from its cache it loads all that it knows of the functions of
Python and NumPy, as if it were about to compile: a sixth of the work of starting a rank. What is in
the cache is compiled and needs numba's runtime alone, so that DiML's own functions are loaded with
nothing but that. Whatever has to be compiled, and functions of a user's own, load the rest as ever.
A numba that is built otherwise does too.
"""

from __future__ import annotations

from typing import Any

from numba.core.caching import FunctionCache
from numba.core.runtime.nrt import rtsys


def _load_with_less(cache: Any) -> None:
    """Let the functions of this package be loaded with numba's runtime alone."""
    load_with_all = cache.load_overload

    def load(self: Any, signature: Any, context: Any) -> Any:
        if not self._py_func.__module__.startswith("diml."):
            return load_with_all(self, signature, context)
        # One thread at a time is here: numba holds its compiler's lock.
        context.refresh = lambda: rtsys.initialize(context)
        try:
            return load_with_all(self, signature, context)
        finally:
            del context.refresh

    cache.load_overload = load


if hasattr(FunctionCache, "load_overload") and hasattr(rtsys, "initialize"):
    _load_with_less(FunctionCache)
