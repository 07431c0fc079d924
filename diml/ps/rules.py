"""What a server does with an update: the rule of a table.

Owns the rules by name, the numbers that each takes, and how a user's own rule is found. Must not
know clocks or workers. Invariant: a rule's result depends on the rows, its state, its step count
and the update only, so that the same update after a repair gives the same bits.

A user's rule is named "module:function", so that servers can import it. The function is compiled
with numba and called once a row as `function(w, state, g, t, options)`: it changes w (cols,) and
state (slots·cols,) in place; t counts the table's steps from 1 on; `options` are the numbers
given to `ps.table` or `ps.kv` by name, in the order of their names, without `slots`.
"""

from __future__ import annotations

import functools
import importlib
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeAlias

import numpy as np
from numba import njit
from numba.core.dispatcher import Dispatcher
from numba.core.errors import NumbaError
from numpy.typing import NDArray

from diml.errors import Misuse
from diml.kernels import rules as kernels
from diml.kernels.rows import check_rows, place_of, scatter_add
from diml.ps.tables import TableSpec, first_values

Rows: TypeAlias = NDArray[Any]
Kernel: TypeAlias = Callable[[Rows, Rows, int, NDArray[Any], Rows, int, NDArray[np.float64]], None]

_STEP = {"step_size": 0.5, "step_size_offset": 100.0, "step_size_pow": 0.5}
_REGULARISERS = {"l1": 0.0, "l2": 0.0}


@dataclass(frozen=True, slots=True)
class Rule:
    """How updates change rows.

    Attributes:
        kernel: one step on the rows of a message.
        options: its numbers with their defaults, in the kernel's order.
        slots: numbers of state per parameter.
        additive: whether a worker may show its own pending updates by adding them, and a server
            apply the workers' updates one by one instead of in one step on their sum.
        echo: whether rows are read with their first slot of state, which comes back with updates.
        user: a user's own compiled function, which the kernel calls once a row.
    """

    kernel: Kernel
    options: tuple[tuple[str, float], ...] = ()
    slots: int = 0
    additive: bool = False
    echo: bool = False
    user: Any = None

    def wire_cols(self, cols: int) -> int:
        """Numbers in a row as it is read, and as it is updated."""
        return 2 * cols if self.echo else cols

    @property
    def numbers(self) -> NDArray[np.float64]:
        """The options as the kernel takes them."""
        return np.array([value for _, value in self.options], np.float64)


def _add(
    w: Rows, s: Rows, base: int, ids: NDArray[Any], g: Rows, t: int, o: NDArray[np.float64]
) -> None:
    scatter_add(w, base, ids, g)


def _rule(kernel: Kernel, slots: int, options: dict[str, float], echo: bool = False) -> Rule:
    return Rule(kernel, tuple(options.items()), slots, additive=False, echo=echo)


_RULES = {
    "add": Rule(_add, additive=True),
    "sgd": _rule(kernels.sgd, 0, {**_STEP, **_REGULARISERS}),
    "adagrad": _rule(kernels.adagrad, 1, {"step_size": 0.1, **_REGULARISERS}),
    "adarevision": _rule(kernels.adarevision, 3, {"step_size": 0.1}, echo=True),
    "ftrl": _rule(kernels.ftrl, 2, {"alpha": 0.1, "beta": 1.0, **_REGULARISERS}),
}


def rule_of(spec: TableSpec) -> Rule:
    """The rule of a table, with its options. Raises Misuse, naming the table, for one that is
    unknown, takes no such option, or cannot work on the table's dtype."""
    where = f"table {spec.name!r}: rule {spec.rule!r}"
    for name, value in spec.options:
        if not isinstance(value, int | float) or not math.isfinite(value):
            raise Misuse(f"{where}: option {name} = {value!r} is not a number")
    if spec.rule != "add" and not spec.dtype.startswith("float"):
        raise Misuse(f"{where} needs a table of floats, not of {spec.dtype}")
    if spec.sparse and spec.rule == "adarevision":
        raise Misuse(f"{where} is not for sparse tables")
    if ":" in spec.rule:
        return _user_rule(where, spec.rule, spec.options)
    if spec.rule not in _RULES:
        raise Misuse(f"{where} is none of {', '.join(_RULES)}, nor a module:function")
    rule = _RULES[spec.rule]
    options = dict(rule.options)
    for name, value in spec.options:
        if name not in options:
            raise Misuse(f"{where} has no option {name!r}; it has {', '.join(options) or 'none'}")
        options[name] = float(value)
    return Rule(rule.kernel, tuple(options.items()), rule.slots, rule.additive, rule.echo)


def _user_rule(where: str, path: str, options: tuple[tuple[str, float], ...]) -> Rule:
    given = dict(options)
    slots = given.pop("slots", 0)
    if slots != int(slots) or slots < 0:
        raise Misuse(f"{where}: slots = {slots!r} is not a whole number from 0 on")
    module, _, name = path.partition(":")
    if not module or not name or module.startswith("."):
        raise Misuse(f"{where} is no module:function")
    if module == "__main__":
        raise Misuse(f"{where}: servers cannot import from __main__; put it into a module")
    try:
        function = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise Misuse(f"{where} cannot be imported: {error}") from None
    if not isinstance(function, Dispatcher | FunctionType):
        raise Misuse(f"{where} is not a function, but {function!r}")
    step = _compiled(function)
    return Rule(_looped(step), tuple(sorted(given.items())), int(slots), user=step)


def try_rule(spec: TableSpec) -> None:
    """Take one step of a user's rule on one row, so that it is compiled before it is needed. First
    without the compiler: compiled code does not look whether an index is outside.

    Raises Misuse, naming the table and the rule, if the function does not work.
    """
    rule = rule_of(spec)
    if rule.user is None:
        return
    where = f"table {spec.name!r}: rule {spec.rule!r}"
    dtype, ids = spec.numpy_dtype, np.zeros(1, np.int64)
    for what, step in (("fails", rule.user.py_func), ("cannot be compiled", rule.user)):
        state, g = np.zeros((1, rule.slots * spec.width), dtype), np.ones((1, spec.width), dtype)
        w = np.zeros_like(g) if spec.sparse else first_values(spec, 0, 1)
        try:
            with np.errstate(all="ignore"):
                step(w[0], state[0], g[0], 1, rule.numbers)
        except Exception as error:
            raise Misuse(f"{where} {what}: {_cause(error)}") from None
    rule.kernel(w, state, 0, ids, g, 1, rule.numbers)


def _cause(error: Exception) -> str:
    """One line of what an error says. The compiler's first one is the same for all."""
    lines = [line.strip() for line in re.sub(r"\x1b\[\d*m", "", str(error)).splitlines()]
    lines = [line for line in lines if line] or [""]
    line = lines[1] if isinstance(error, NumbaError) and len(lines) > 1 else lines[0]
    return f"{type(error).__name__}: {line}"


@functools.lru_cache
def _compiled(function: Callable[..., None]) -> Any:
    return function if isinstance(function, Dispatcher) else njit(nogil=True)(function)


@functools.lru_cache
def _looped(step: Callable[..., None]) -> Kernel:
    """A kernel that calls a user's compiled function once a row."""

    @njit(nogil=True)
    def kernel(
        w: Rows, s: Rows, base: int, ids: NDArray[Any], g: Rows, t: int, o: NDArray[np.float64]
    ) -> None:
        check_rows(ids, g, w.shape[1])
        for i in range(ids.shape[0]):
            row = place_of(ids[i], base, w.shape[0])
            step(w[row], s[row], g[i], t, o)

    return kernel
