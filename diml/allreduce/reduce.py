"""Allreduce: the one collective whose every step is felt, in its short form and its long one.

Owns the plans of what has been called before, and the short form: one MPI call into a pooled
buffer that the log keeps. Whatever is not plain (the first call of its kind, `prepare`, `out`, a
drill, a repair under way) takes the long form, through the protocol's script.

Invariant: both forms leave the same log behind.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from types import FrameType
from typing import TYPE_CHECKING, Any

import numpy as np

from diml.allreduce import exchange
from diml.allreduce.driver import Driver
from diml.allreduce.log import COMPARE_EVERY, Pool, Result, Site, fresh
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
from diml.allreduce.wire import value_of
from diml.errors import Misuse, PeerFailed

if TYPE_CHECKING:
    from diml.world.calls import Calls
    from diml.world.link import Link

_NDARRAY = np.ndarray


class Plan:
    """All that is known in advance of an allreduce of one op, dtype and shape.

    Attributes:
        op, dtype, shape: what it is for.
        flat: MPI refuses such an array by itself if its elements do not lie side by side.
        signature: what the ranks must agree on.
        ready: free buffers for its results.
        count, call, kind, mpi_op: the MPI call; see `Link.reducer`.
    """

    __slots__ = (
        "call",
        "count",
        "dtype",
        "flat",
        "kind",
        "mpi_op",
        "op",
        "ready",
        "shape",
        "signature",
    )

    def __init__(
        self, op: str, array: Array, how: Reduction, link: Link, ready: list[Result]
    ) -> None:
        assert how.mpi_op is not None
        self.op, self.dtype, self.shape, self.count = op, array.dtype, array.shape, array.size
        self.flat = array.ndim <= 1
        self.signature = signature(Kind.ALLREDUCE, how.code, array.shape)
        self.ready = ready
        self.call, self.kind, self.mpi_op = link.reducer(how.mpi_op, array.dtype, array.size)

    def buffer(self, shown: Callable[[Array], Any]) -> Result:
        """Memory for one more result."""
        result = fresh(self.dtype, self.shape, self.ready)
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
        calls.short = self.short
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
            Misuse: op and dtype do not go together; `out` is read-only, or another shape or dtype;
                a function gives what the array cannot hold, or raises. What it raises comes out
                as it is on rank 0, which applies it.
            Mismatch: the workers called different things; both call sites are named.
            GaveUp: more was lost at once than there are copies.
        """
        frame = sys._getframe(1)
        if prepare is not None or out is not None or type(array) is not _NDARRAY:
            return self._by_script(array, op, prepare, out, _site(frame))
        plan, core = self._last, self._core
        if (
            plan is None
            or plan.dtype is not array.dtype
            or plan.shape != array.shape
            or plan.op != op
        ):
            plan = self._known(array, op)
        log = core.steps if core.loaded else core.boot
        quick = log.quick
        if plan is None or len(quick) >= log.room or not (plan.flat or array.flags.c_contiguous):
            return self._by_script(array, op, None, None, _site(frame))
        result = plan.ready.pop() if plan.ready else plan.buffer(self._link.shown)
        # The watchdogs make a call site of it if they have to, and the log does so later: here
        # every step is felt.
        self._calls.inside = frame
        try:
            plan.call([array, plan.count, plan.kind], result.shown, plan.mpi_op)
        except Exception as error:
            return self._failed(error, array, op, result, _site(frame))
        finally:
            self._calls.inside = False
        quick.append((plan, result, frame.f_code, frame.f_lasti))
        value: Array = result.value
        return value

    def _known(self, array: Array, op: Reducer) -> Plan | None:
        """The plan of a call of another kind than the last one, if there is one."""
        self._last = self._plans.get((op, array.dtype, array.shape)) if type(op) is str else None
        return self._last

    def short(self, inside: object) -> tuple[int, object]:
        """Of the short calls, for the watchdogs: see `Calls.short`."""
        core, site = self._core, None
        log = core.steps if core.loaded else core.boot
        count = core.boot.entered + core.steps.entered + len(log.quick)
        if isinstance(inside, FrameType):
            return count + 1, _site(inside)
        for _, _, code, at in log.quick[-1:]:
            site = Site((code, at))
        return count, site

    def _failed(
        self, error: Exception, array: Array, op: Reducer, result: Result, site: Site
    ) -> Array:
        """A short call has not come to its end: somebody died, or MPI did not take the array."""
        failure = self._link.failure(error)
        if isinstance(failure, PeerFailed):
            self._driver.keep(array, result)
            self._driver.fail(failure)
        elif isinstance(error, BufferError):
            # Nothing was written to it.
            assert result.home is not None
            result.home.append(result)
        else:
            raise failure or error
        return self._by_script(array, op, None, None, site)

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
        if type(op) is str and how.view == source.dtype:
            self._plan(op, source, how)
        if prepare is not None and not callable(prepare):
            raise Misuse(f"allreduce: prepare is no function but {prepare!r}")
        if out is not None:
            _check_out(out, source)
        prepared, driver = prepare is None, self._driver

        def execute() -> Result:
            nonlocal prepared
            if not prepared and prepare is not None:
                prepare(array)
                prepared = True
            send = np.ascontiguousarray(native(array)).reshape(source.shape)
            return exchange.reduce(driver.link, self._pool, how, send, driver.held)

        agreed = signature(Kind.ALLREDUCE, how.code, source.shape)
        details = (op, source.dtype, source.shape)
        request = Request(Kind.ALLREDUCE, agreed, site, source.size > 0, details=details)
        result = self._collective(request, execute)
        if result.form == "object":
            error, result.value = result.value, None
            raise error or Misuse(f"allreduce: the function failed on rank 0: {value_of(result)}")
        value: Array = result.value
        if out is None:
            return value
        np.copyto(out, value)
        return out

    def _plan(self, op: str, array: Array, how: Reduction) -> None:
        """Let the next call like this one be a short one."""
        if not self._may_plan or self._core.recovering:
            return
        key, most = (op, array.dtype, array.shape), self._core.boot.budget_bytes // 4
        # Until the log looks at its budget again.
        small = 0 < array.nbytes * COMPARE_EVERY <= most
        if how.mpi_op is not None and small and key not in self._plans:
            ready = self._pool.shelf(array.dtype, array.shape, shown=True)
            self._plans[key] = Plan(op, array, how, self._link, ready)


def _check_out(out: object, source: Array) -> None:
    if not isinstance(out, np.ndarray):
        raise Misuse(f"allreduce: out is no array but a {type(out).__name__}")
    if out.shape != source.shape or out.dtype != source.dtype:
        raise Misuse(
            f"allreduce: out is {out.dtype} {out.shape}, the array is {source.dtype} {source.shape}"
        )
    if not out.flags.writeable:
        raise Misuse("allreduce: out is read-only")


def _site(frame: FrameType) -> Site:
    return Site((frame.f_code, frame.f_lasti))


def native(array: Any) -> Array:
    """As an array in native byte order (a copy only where it is not)."""
    try:
        source = np.asarray(array)
    except ValueError as error:
        raise Misuse(f"allreduce: {error}") from None
    return source if source.dtype.isnative else source.astype(source.dtype.newbyteorder("="))
