"""One trial of a sweep on this rank: a job run inside of another, on a communicator lent to it.

Owns what a job may touch in the process and gets back as it was: the environment, the working
folder, standard output and error, signal handlers, `sys.argv` and `sys.path`, the process's own
`diml.Job`; and what the signals of a batch system do, between trials and inside of them. Must not
know what the sweep makes of the outcome.

A job is a module with a `main(arguments)`, as those of `diml.jobs`, or a script. Its result is
what its events say: the values of its last `progress` and `result`.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import os
import runpy
import signal
import sys
import threading
import time
import traceback
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any

from diml.checkpoint.keeper import STOP_SIGNALS, StopRequest
from diml.config import OPTIONS
from diml.errors import DimlError, Misuse, Resumable
from diml.events import watched
from diml.exports import numbers
from diml.job import current, put_aside
from diml.world.launch import TRIAL
from diml.world.marker import ATTEMPT, FOLDER, MEMORY

# The outer job's, not the trial's.
_VARIABLES = (*(option.variable for option in OPTIONS), ATTEMPT, FOLDER, MEMORY)
_SIGNALS = (signal.SIGINT, *STOP_SIGNALS)
_REASON_LONGEST = 300
_AGAIN_S = 0.02
_DEALING = tuple(f"diml.{name}." for name in ("allreduce", "checkpoint", "job", "ps", "world"))
_TELLING = ("progress", "result")


@dataclass(frozen=True)
class Program:
    """What a sweep runs.

    Attributes:
        name: a module's name, or a script's path.
        run: does it with these arguments; ends as a program does, or raises.
        parser: makes the parser of its flags, where it shows one.
    """

    name: str
    run: Callable[[Sequence[str]], Any]
    parser: Callable[[], ArgumentParser] | None = None


@dataclass
class Outcome:
    """How a trial ended on this rank; on the others it may have ended otherwise.

    Attributes:
        status: the exit status that the job alone would have had.
        values: what this rank has told, by name, each with the time at which it did.
        told: the signal that told this rank to stop, or "".
    """

    status: int = 0
    reason: str = ""
    seconds: float = 0.0
    values: dict[str, tuple[float, float]] = field(default_factory=dict)
    told: str = ""

    def hear(self, event: Mapping[str, Any]) -> None:
        """Take an event of the trial's job."""
        if event["what"] in _TELLING:
            for name, value in numbers(event["values"]):
                self.values[plain(name)] = (event["time"], value)


class Stop:
    """What USR1 and TERM, by which a batch system asks for an orderly end, do to a sweep.

    A trial that keeps checkpoints takes the signals over and stops by itself. Any other one is
    broken off, for it may last longer than the time that is left, and is run again when the sweep
    goes on. That is done by an exception, which must not meet what DiML itself does with others:
    the signal is sent again until it finds the program in code of its own.

    Attributes:
        name: the signal that has come, or "": the next meeting ends the sweep.
    """

    def __init__(self) -> None:
        """Take the signals over (only the main thread can; elsewhere nothing is taken over)."""
        self.name, self._inside = "", False
        if threading.current_thread() is threading.main_thread():
            for number in STOP_SIGNALS:
                signal.signal(number, self._received)

    @contextlib.contextmanager
    def inside(self) -> Iterator[None]:
        """In a trial."""
        self._inside = True
        try:
            yield
        finally:
            self._inside = False

    def _received(self, number: int, frame: FrameType | None) -> None:
        self.name = signal.Signals(number).name
        if not self._inside:
            return
        if current() is not None and _in_program(frame):
            self._inside = False
            raise Resumable(f"stopped by {self.name}")
        main = threading.main_thread().ident
        again = threading.Timer(_AGAIN_S, lambda: signal.pthread_kill(main or 0, number))
        again.daemon = True
        again.start()


def _in_program(frame: FrameType | None) -> bool:
    """Whether a trial is in no call of DiML that deals with other ranks."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module == __name__:
            return True
        if f"{module}.".startswith(_DEALING):
            return False
        frame = frame.f_back
    return True


def plain(name: str) -> str:
    """A metric's name, however it is spelled: held-out_RMSE and "held-out rmse" are one."""
    return "".join(c if c.isalnum() else "_" for c in name.lower())


def program(name: str) -> Program:
    """The program of this name. Raises Misuse where it is neither a job's module nor a script."""
    if Path(name).is_file():
        return Program(name, lambda arguments: _script(name, arguments))
    try:
        module = importlib.import_module(name)
    except ModuleNotFoundError:
        raise Misuse(f"there is no job {name}: neither a module nor a file") from None
    main = getattr(module, "main", None)
    if main is None:
        raise Misuse(f"{name} is no job: it has no main(arguments)")
    return Program(name, main, getattr(module, "parser", None))


def _script(path: str, arguments: Sequence[str]) -> None:
    before, sys.argv = sys.argv, [path, *arguments]
    try:
        runpy.run_path(path, run_name="__main__")
    finally:
        sys.argv = before


def run_trial(job: Program, arguments: Sequence[str], comm: Any, seed: int, stop: Stop) -> Outcome:
    """Run the job once, on `comm`, collectively over its members.

    Whatever the job raises is in the outcome; only a death of this process is not.
    """
    outcome, said = Outcome(), io.StringIO()
    begun = time.perf_counter()
    outer = put_aside(None)
    try:
        with (
            stop.inside(),
            _aside(seed, outcome),
            watched(outcome.hear),
            contextlib.redirect_stdout(io.StringIO()),
            contextlib.redirect_stderr(said),
        ):
            outcome.status = _status(lambda: _lent(job, arguments, comm))
    finally:
        put_aside(outer)
        gc.collect()
    outcome.told = outcome.told or stop.name
    outcome.seconds = time.perf_counter() - begun
    if outcome.status:
        lines = [line.strip() for line in said.getvalue().splitlines() if line.strip()]
        last = lines[-1].removeprefix("diml: ") if lines else ""
        outcome.reason = last[:_REASON_LONGEST]
    return outcome


def _lent(job: Program, arguments: Sequence[str], comm: Any) -> Any:
    from diml.world.mpi import lend  # starts MPI, which is for `diml.init` to do

    with lend(comm):
        return job.run(arguments)


def _status(run: Callable[[], Any]) -> int:
    """The exit status of a program, its reason on stderr."""
    try:
        ended = run()
    except SystemExit as left:
        ended = left.code
    except DimlError as error:
        print(f"diml: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return 130
    except Exception:
        traceback.print_exc()
        return 1
    if ended is None or isinstance(ended, int):
        return ended or 0
    print(ended, file=sys.stderr)
    return 1


@contextlib.contextmanager
def _aside(seed: int, outcome: Outcome) -> Iterator[None]:
    """The environment and the place of a trial; afterwards the outer job's again."""
    kept, folder, path = dict(os.environ), os.getcwd(), list(sys.path)
    for name in _VARIABLES:
        os.environ.pop(name, None)
    handlers = {number: signal.getsignal(number) for number in _SIGNALS}
    os.environ.update({TRIAL: "1", "DIML_SEED": str(seed)})
    try:
        yield
    finally:
        for name in os.environ.keys() - kept.keys():
            del os.environ[name]
        os.environ.update(kept)
        os.chdir(folder)
        sys.path[:] = path
        for number, handler in handlers.items():
            taker = getattr(signal.getsignal(number), "__self__", None)
            if isinstance(taker, StopRequest):
                outcome.told = taker.name or outcome.told
            signal.signal(number, handler)
