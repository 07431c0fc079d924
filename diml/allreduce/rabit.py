"""Rabit's Python names over DiML: a Rabit program runs by changing its import.

Owns the translation of calls; everything else is the engine's. It follows Rabit's Python package:
`allreduce` gives a new flat array that the caller may change, states may be any objects that can
be pickled (they stay in memory), and the version counts checkpoints. New beside Rabit's own:
`lazy_checkpoint`, which only its C++ interface had, and an uncaught exception ends all ranks.
"""

from __future__ import annotations

import pickle
import socket
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from diml.checkpoint import codec
from diml.errors import Misuse
from diml.job import Job
from diml.job import init as _start

MAX, MIN, SUM, BITOR = 0, 1, 2, 3
_OPS = {MAX: "max", MIN: "min", SUM: "sum", BITOR: "bitor"}
_DTYPES = ("int8", "uint8", "int32", "uint32", "int64", "uint64", "float32", "float64")
_PICKLED = "pickled by diml.allreduce.rabit"

_job: Job | None = None


def init(args: Sequence[str | bytes] | None = None, lib: str = "standard") -> None:
    """Start; once started, nothing. `args` (Rabit's `name=value` settings) and `lib` have no
    meaning here: ranks, spares and drills are set by DIML_* variables.
    """
    global _job
    if _job is None:
        _job = _start()


def finalize() -> None:
    """Leave in good order, together with all others."""
    global _job
    job, _job = _running(), None
    job.__exit__(None, None, None)


def get_rank() -> int:
    """This worker's rank."""
    return _running().rank


def get_world_size() -> int:
    """Number of workers."""
    return _running().size


def tracker_print(msg: object) -> None:
    """Print a message, from the rank that says it."""
    if not _running().settings.quiet:
        print(msg, end="" if str(msg).endswith("\n") else "\n", flush=True)


def get_processor_name() -> bytes:
    """Name of the host."""
    return socket.gethostname().encode()


def broadcast(data: Any, root: int) -> Any:
    """Give the root's object to all workers: an array is the caller's own, as in Rabit. One
    collective (Rabit needs two)."""
    value = _running().broadcast(data, root)
    return value.copy() if isinstance(value, np.ndarray) and not value.flags.writeable else value


def allreduce(
    data: NDArray[Any], op: int, prepare_fun: Callable[[NDArray[Any]], object] | None = None
) -> NDArray[Any]:
    """Reduce an array; the result is new and flat. `prepare_fun(data)` is skipped in a replay.

    Raises Misuse for another dtype or operation than Rabit's.
    """
    if not isinstance(data, np.ndarray):
        raise Misuse("allreduce only takes a numpy.ndarray")
    if data.dtype.name not in _DTYPES:
        raise Misuse(f"allreduce: dtype {data.dtype} is not one of Rabit's: {', '.join(_DTYPES)}")
    if op not in _OPS:
        raise Misuse(f"allreduce: {op!r} is none of MAX, MIN, SUM, BITOR")
    out = np.empty_like(data)
    _running().allreduce(data, _OPS[op], prepare=prepare_fun, out=out)
    return out.ravel()


def load_checkpoint(with_local: bool = False) -> tuple[Any, ...]:
    """(version, model), or (version, model, local) if asked for; version 0 is a fresh start."""
    version, model, local = _running().load_checkpoint()
    states = (_unpacked(model), _unpacked(local))
    return (version, *states) if with_local else (version, states[0])


def checkpoint(global_model: Any, local_model: Any = None) -> None:
    """Commit the next version; a local model must be given always or never."""
    local = None if local_model is None else _packed(local_model)
    _running().checkpoint(_packed(global_model), local)


def lazy_checkpoint(global_model: Any) -> None:
    """Commit the next version without copying the model, which must not change until the last
    collective before the next checkpoint. (One that has to be pickled is copied.)"""
    packed = _packed(global_model)
    _running().checkpoint(packed, lazy=True)


def version_number() -> int:
    """Number of committed checkpoints."""
    return _running().version


def _running() -> Job:
    if _job is None:
        raise Misuse("diml.allreduce.rabit: call init first")
    return _job


def _packed(state: Any) -> Any:
    """As it is where the codec takes it, so that a lazy model is not copied; else pickled.

    Not where checkpoints go to a disk, from which no pickle is read: that raises Misuse.
    """
    try:
        codec.check(state)
    except Misuse:
        if _running().settings.checkpoint_dir is not None:
            raise
        return {_PICKLED: pickle.dumps(state, pickle.HIGHEST_PROTOCOL)}
    return state


def _unpacked(state: Any) -> Any:
    if isinstance(state, dict) and set(state) == {_PICKLED}:
        if _running().settings.checkpoint_dir is not None:
            raise Misuse("a pickled state is not read from a durable checkpoint")
        return pickle.loads(state[_PICKLED])
    return state
