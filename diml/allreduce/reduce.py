"""Allreduce: the one collective whose every step is felt, in its short form and its long one.

Owns the plans of what has been called before, and the short form: one MPI call into a pooled
buffer that the log keeps. Whatever is not plain (the first call of its kind, `prepare`, `out`, a
drill, a repair under way) takes the long form, through the protocol's script.

Invariant: both forms leave the same log behind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import CodeType
from typing import TYPE_CHECKING, Any

import numpy as np

from diml.allreduce import exchange
from diml.allreduce.driver import Driver
from diml.allreduce.log import Pool, Result, Site, fresh
from diml.allreduce.operation import (
    Array,
    Kind,
    Reducer,
    Reduction,
    Request,
    reduction,
    signature,
)
from diml.allreduce.recovery import Core
from diml.errors import Misuse, PeerFailed

if TYPE_CHECKING:
    from diml.world.calls import Calls
    from diml.world.link import Link

# Failure-free, histories are compared at every checkpoint, at exit, and so often.
COMPARE_EVERY = 64
# Longer arrays go to MPI in pieces.
_PLANNED_MAX = 1 << 30
_NDARRAY = np.ndarray


class Plan:
    """All that is known in advance of an allreduce of one op, dtype and shape.

    Attributes:
        op, dtype, shape: what it is for.
        signature: what the ranks must agree on.
        shelf: the free buffers for its results.
        reduce: the MPI call, of an array and a buffer's `shown`.
        code, at, site: where it was called from last, and the same as a Site.
    """

    __slots__ = ("at", "code", "dtype", "op", "reduce", "shape", "shelf", "signature", "site")

    def __init__(
        self, op: str, array: Array, how: Reduction, link: Link, shelf: list[Result]
    ) -> None:
        assert how.mpi_op is not None
        self.op, self.dtype, self.shape = op, array.dtype, array.shape
        self.signature = signature(Kind.ALLREDUCE, how.code, array.shape)
        self.shelf = shelf
        self.reduce: Callable[[Array, Any], None]
        self.reduce = link.reducer(how.mpi_op, array.dtype, array.size)
        self.code: CodeType | None = None
        self.at = -1
        self.site: Site

    def called_from(self, code: CodeType, at: int) -> None:
        """Note another call site."""
        self.code, self.at, self.site = code, at, Site((code, at))

    def buffer(self, shown: Callable[[Array], Any]) -> Result:
        """Memory for a result, where there is none on the shelf or it was used otherwise."""
        result = self.shelf.pop() if self.shelf else fresh(self.dtype, self.shape, self.shelf)
        if result.shown is None:
            result.shown = shown(result.owner)
        return result


class Allreduce:
    """The allreduce of one process.

    `collective` carries out a request the long way; `plans` is false where every call takes it.
    """

    def __init__(
        self,
        core: Core,
        driver: Driver,
        pool: Pool,
        calls: Calls,
        collective: Callable[[Request, Callable[[], Result]], Result],
        plans: bool,
    ) -> None:
        self._core, self._driver, self._pool, self._calls = core, driver, pool, calls
        self._collective = collective
        self._may_plan = plans
        self.sit_down(None)

    def sit_down(self, link: Link | None) -> None:
        """Plans hold for one link."""
        self._link: Any = link
        self._plans: dict[tuple[Any, ...], Plan] = {}
        self._last: Plan | None = None

    def allreduce(
        self,
        array: Any,
        op: Reducer = "sum",
        prepare: Callable[[Array], object] | None = None,
        out: Array | None = None,
    ) -> Array:
        """Reduce an array elementwise over all workers; all get the same bits.

        Args:
            array: numeric, of one shape and dtype on all workers; numbers count as 0-d arrays.
            op: "sum", "prod", "max", "min", "bitor", or a function of two arrays that gives a
                third, folded in rank order.
            prepare: called with `array` just before the reduction, to fill it; skipped when the
                result is replayed after a failure.
            out: the result is copied there and returned (it may be `array` itself).

        Returns:
            A read-only array of the same shape and dtype (the log shares its memory).

        Raises:
            Misuse: op and dtype do not go together.
            Mismatch: the workers called different things; both call sites are named.
            GaveUp: more was lost at once than there are copies.
        """
        frame = sys._getframe(1)
        core = self._core
        if prepare is not None or out is not None or type(array) is not _NDARRAY:
            return self._by_script(array, op, prepare, out, _site(frame))
        shape, plan = array.shape, self._last
        if plan is None or plan.shape != shape or plan.dtype is not array.dtype or plan.op != op:
            known = type(op) is str
            plan = self._last = self._plans.get((op, array.dtype, shape)) if known else None
        log = core.steps if core.loaded else core.boot
        sequence = len(log.results)
        compares = sequence % COMPARE_EVERY == COMPARE_EVERY - 1
        if plan is None or compares or core.recovering or not array.flags.c_contiguous:
            return self._by_script(array, op, None, None, _site(frame))
        if frame.f_lasti != plan.at or frame.f_code is not plan.code:
            plan.called_from(frame.f_code, frame.f_lasti)
        shelf, calls, site = plan.shelf, self._calls, plan.site
        result = shelf.pop() if shelf and shelf[-1].shown else plan.buffer(self._link.shown)
        # As `Calls.begin`, `Calls.end` and `Log.append` do: calls would be felt here.
        calls.site, calls.inside = site, True
        calls.serial += 1
        try:
            plan.reduce(array, result.shown)
        except PeerFailed as error:
            self._driver.keep(array, result)
            self._driver.fail(error)
            return self._by_script(array, op, None, None, site)
        finally:
            calls.inside = False
        log.barrier = sequence
        log.signatures.append(plan.signature)
        log.sites.append(site)
        log.results.append(result)
        log.nbytes += result.nbytes
        if log.nbytes > log.budget_bytes:
            core.tighten()
        value: Array = result.value
        return value

    def _by_script(
        self,
        array: Any,
        op: Reducer,
        prepare: Callable[[Array], object] | None,
        out: Array | None,
        site: Site,
    ) -> Array:
        source = native(array)
        how = reduction(op, source.dtype)
        if type(op) is str and how.view == source.dtype and self._may_plan:
            self._plan(op, source, how)
        if out is not None and (out.shape != source.shape or out.dtype != source.dtype):
            raise Misuse(
                f"allreduce: out is {out.dtype} {out.shape}, "
                f"the array is {source.dtype} {source.shape}"
            )
        prepared, driver = prepare is None, self._driver

        def execute() -> Result:
            nonlocal prepared
            if not prepared and prepare is not None:
                prepare(array)
                prepared = True
            send = np.ascontiguousarray(native(array)).reshape(source.shape)
            return exchange.reduce(driver.link, self._pool, how, send, driver.held)

        agreed = signature(Kind.ALLREDUCE, how.code, source.shape)
        request = Request(Kind.ALLREDUCE, agreed, site, source.size > 0)
        value: Array = self._collective(request, execute).value
        if out is None:
            return value
        np.copyto(out, value)
        return out

    def _plan(self, op: str, array: Array, how: Reduction) -> None:
        """Let the next call like this one be a short one."""
        key = (op, array.dtype, array.shape)
        if how.mpi_op is not None and key not in self._plans and 0 < array.size <= _PLANNED_MAX:
            shelf = self._pool.shelf(array.dtype, array.shape)
            self._plans[key] = Plan(op, array, how, self._link, shelf)


def _site(frame: Any) -> Site:
    return Site((frame.f_code, frame.f_lasti))


def native(array: Any) -> Array:
    """As an array in native byte order (a copy only where it is not)."""
    source = np.asarray(array)
    return source if source.dtype.isnative else source.astype(source.dtype.newbyteorder("="))
