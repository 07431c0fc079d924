"""Real MPI jobs for tests: started in a session of their own, with a deadline, and cleaned up.

Owns the promise that a test can neither hang nor leave a process behind: a job that outlives its
deadline is ended, and the failure message carries the Python stack of every rank. Deadlines are
those of an idle machine: all are stretched by SLACK, since a busy or a slow one may take that much
longer, and nothing is proven by ending a job that would come to its end. Starts the launcher beside
the interpreter that runs the tests, with no MPI option of its own but to yield the cores, so that
what is tested is what a user's plain `mpirun -n N python ...` does here.
"""

from __future__ import annotations

import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
import time
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType

from tests.helpers import processes
from tests.helpers.processes import MARK, Process

CHECKOUT = Path(__file__).resolve().parents[2]
_ONE_THREAD = ("OMP", "OPENBLAS", "MKL", "NUMBA")
_NOT_INHERITED = re.compile(r"DIML_|PMIX_|PMI_|PRTE_|OMPI_COMM_|OMPI_MCA_|SLURM_")
SLACK = 4.0
_LEAVE_S = 40.0  # for the daemons of a finished job to be gone

Program = str | Path | Sequence[str]
"""Inline code (a str), a script (a Path), or the interpreter's arguments (["-m", "diml..."])."""


@dataclass(frozen=True)
class Finished:
    """How a job ended. `returncode` is the launcher's; of a hung job it says nothing."""

    command: str
    returncode: int
    stdout: str
    stderr: str
    seconds: float
    hung: bool = False
    stacks: str = ""
    leftovers: tuple[str, ...] = ()
    """Processes that outlived the launcher and had to be ended."""

    def expect(self, status: int = 0) -> Finished:
        """Return self if the job ended by itself with `status`; else fail with all its output."""
        assert not self.hung and self.returncode == status, self.report()
        return self

    def report(self) -> str:
        """All that is known about the run, for a failure message."""
        ended = "HUNG, ended at its deadline" if self.hung else f"exit status {self.returncode}"
        text = [f"{self.command}\n{ended} after {self.seconds:.1f} s"]
        text += [f"left behind: {line}" for line in self.leftovers]
        for name, body in (("stacks", self.stacks), ("out", self.stdout), ("err", self.stderr)):
            text.append(f"===== {name}\n{_shortened(body)}")
        return "\n".join(text)


class Running:
    """A job in the background. Use it in a `with` block: leaving it ends whatever still runs."""

    def __init__(
        self,
        n: int | None,
        program: Program,
        *,
        args: Sequence[object] = (),
        env: Mapping[str, str] | None = None,
        cwd: Path | None = None,
        launcher_args: Sequence[str] = (),
    ) -> None:
        self.mark = uuid.uuid4().hex
        # Short and directly below /tmp: the launcher's socket paths have a length limit.
        self._scratch = Path(tempfile.mkdtemp(prefix="diml-", dir="/tmp"))
        (self._scratch / "tmp").mkdir()
        launcher = [] if n is None else [str(mpirun()), "-n", str(n), *launcher_args]
        command = [*launcher, sys.executable, *self._python_arguments(program), *map(str, args)]
        self.command = " ".join(command)
        self._started = time.monotonic()
        out_path, err_path = self._scratch / "stdout", self._scratch / "stderr"
        with out_path.open("wb") as out, err_path.open("wb") as err:
            self._launcher = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=out,
                stderr=err,
                cwd=cwd or self._scratch,
                env=self._environment(_defaults(program) | dict(env or {})),
                start_new_session=True,
            )
        self._finished: Finished | None = None

    def __enter__(self) -> Running:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, _: BaseException | None, __: TracebackType | None
    ) -> None:
        self.end()

    @property
    def pid(self) -> int:
        """The launcher's pid."""
        return self._launcher.pid

    @property
    def stdout(self) -> str:
        """What the job has written so far."""
        return self._text("stdout")

    @property
    def stderr(self) -> str:
        return self._text("stderr")

    def poll(self) -> int | None:
        """The launcher's exit status, or None while it runs."""
        return self._launcher.poll()

    def ranks(self) -> dict[int, Process]:
        """Living ranks of the job that mpirun started, by rank of COMM_WORLD (not spawned ones)."""
        found = [p for p in processes.find(self.mark) if p.rank is not None]
        first = min((p.namespace for p in found), default="")
        return {p.rank: p for p in found if p.rank is not None and p.namespace == first}

    def kill(self, pid: int, signal_number: int = signal.SIGKILL) -> bool:
        """Signal one process of this job; False if it was gone already."""
        return processes.send(self.mark, pid, signal_number)

    def wait_for(self, pattern: str, *, timeout_s: float, stream: str = "stdout") -> re.Match[str]:
        """Wait until the regular expression matches the output; fail if it never does."""
        deadline = time.monotonic() + SLACK * timeout_s
        while True:
            over = self.poll() is not None or time.monotonic() > deadline
            if match := re.search(pattern, self._text(stream), re.MULTILINE):
                return match
            if over:
                finished = self.wait(timeout_s=0, allow_hang=True)
                raise AssertionError(f"{pattern!r} never came\n{finished.report()}")
            time.sleep(0.01)

    def wait_until(self, reached: Callable[[], object], what: str, *, timeout_s: float) -> None:
        """Wait for the moment at which something is to be done to the job, which still runs then;
        fail if the moment never comes."""
        deadline = time.monotonic() + SLACK * timeout_s
        while not reached():
            if self.poll() is not None or time.monotonic() > deadline:
                finished = self.wait(timeout_s=0, allow_hang=True)
                raise AssertionError(f"{what}: never\n{finished.report()}")
            time.sleep(0.01)

    def wait_until_stopped(self, rank: int, *, timeout_s: float) -> int:
        """Wait until a rank has come to its drill with the signal STOP; its pid. The job stands
        still until it is told to go on (`kill(pid, SIGCONT)`)."""

        def stopped() -> bool:
            process = self.ranks().get(rank)
            return process is not None and process.state == "T"

        self.wait_until(stopped, f"rank {rank} is stopped", timeout_s=timeout_s)
        return self.ranks()[rank].pid

    def wait(self, *, timeout_s: float, allow_hang: bool = False) -> Finished:
        """Wait for the end and clean up.

        Raises AssertionError if the job outlives its deadline (unless `allow_hang`), or if any of
        its processes outlives the launcher.
        """
        if self._finished is None:
            hung, stacks = False, ""
            try:
                self._launcher.wait(timeout=SLACK * timeout_s)
            except subprocess.TimeoutExpired:
                hung, stacks = True, processes.python_stacks(self.mark)
            self._finished = self._collect(hung, stacks)
        assert allow_hang or not self._finished.hung, self._finished.report()
        assert not self._finished.leftovers, self._finished.report()
        return self._finished

    def end(self) -> None:
        """End the job now, if it still runs; asserts that nothing of it is left."""
        if self._finished is None:
            self._finished = self._collect(hung=True, stacks="")
        assert not self.leftovers(), self._finished.report()

    def leftovers(self) -> list[Process]:
        """Processes of this job that are alive."""
        return processes.find(self.mark)

    def _collect(self, hung: bool, stacks: str) -> Finished:
        seconds = time.monotonic() - self._started
        left: list[Process] = []
        if hung:
            # Asked first, so that the launcher removes its session files.
            self.kill(self.pid, signal.SIGTERM)
            processes.wait_until_gone(self.mark, within_s=3.0)
        else:
            left = processes.wait_until_gone(self.mark, within_s=_LEAVE_S)
        stuck = processes.end_all(self.mark)
        self._launcher.wait(timeout=60.0)
        finished = Finished(
            self.command,
            self._launcher.returncode,
            self.stdout,
            self.stderr,
            seconds,
            hung,
            stacks,
            tuple(str(process) for process in (left or stuck)),
        )
        shutil.rmtree(self._scratch, ignore_errors=True)
        return finished

    def _python_arguments(self, program: Program) -> list[str]:
        if isinstance(program, Path):
            return [str(program)]
        if isinstance(program, str):
            script = self._scratch / "program.py"
            script.write_text(textwrap.dedent(program))
            return [str(script)]
        return list(program)

    def _environment(self, extra: Mapping[str, str]) -> dict[str, str]:
        inherited = {k: v for k, v in os.environ.items() if not _NOT_INHERITED.match(k)}
        return {
            **inherited,
            **{f"{library}_NUM_THREADS": "1" for library in _ONE_THREAD},
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            # Several tests at a time share the cores: who waits for a message lets others run. MPI
            # does that by itself only where one job's ranks outnumber the cores.
            "OMPI_MCA_mpi_yield_when_idle": "1",
            "PYTHONPATH": str(CHECKOUT),
            "PYTHONUNBUFFERED": "1",
            "PYTHONFAULTHANDLER": "1",
            "TMPDIR": str(self._scratch / "tmp"),
            **extra,
            MARK: self.mark,
        }

    def _text(self, stream: str) -> str:
        if self._finished is not None:
            return self._finished.stdout if stream == "stdout" else self._finished.stderr
        return (self._scratch / stream).read_text(errors="replace")


def _defaults(program: Program) -> dict[str, str]:
    """A spare that nobody asked for is one more process to start in each run of a job."""
    is_job = not isinstance(program, str | Path) and program[1].startswith("diml.jobs.")
    return {"DIML_SPARES": "0"} if is_job else {}


def start_mpi(
    n: int | None,
    program: Program,
    *,
    args: Sequence[object] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    launcher_args: Sequence[str] = (),
) -> Running:
    """Start a program on `n` ranks in the background; n None starts it without any launcher.

    `program` is inline code (str), a script (Path), or the interpreter's arguments (a list);
    `args` follow it. `env` is added to a clean environment: one thread a library, this checkout
    on PYTHONPATH, no spare for DiML's own jobs. The working directory defaults to a scratch one
    that is removed at the end.
    """
    return Running(n, program, args=args, env=env, cwd=cwd, launcher_args=launcher_args)


def run_mpi(
    n: int | None,
    program: Program,
    *,
    timeout_s: float,
    args: Sequence[object] = (),
    env: Mapping[str, str] | None = None,
    cwd: Path | None = None,
    launcher_args: Sequence[str] = (),
    allow_hang: bool = False,
) -> Finished:
    """Run a program on `n` ranks to its end (arguments as in `start_mpi`).

    A job that outlives SLACK times `timeout_s` seconds is ended, and AssertionError carries every
    rank's Python stack; with `allow_hang` it is returned with `hung` set. A process left behind by
    a job that ended by itself is an AssertionError too. Any exit status is returned:
    `run_mpi(...).expect(0)` fails with all output unless it is 0.
    """
    with start_mpi(n, program, args=args, env=env, cwd=cwd, launcher_args=launcher_args) as running:
        return running.wait(timeout_s=timeout_s, allow_hang=allow_hang)


def mpirun() -> Path:
    """The launcher of the environment that runs the tests."""
    beside = Path(sys.executable).with_name("mpirun")
    found = str(beside) if beside.exists() else shutil.which("mpirun")
    if found is None:
        raise FileNotFoundError("no mpirun beside the interpreter: run `make install`")
    return Path(found)


def _shortened(text: str, limit: int = 20_000) -> str:
    """Keep the head and the tail: the first error and the last words matter most."""
    if len(text) <= limit:
        return text
    half = limit // 2
    return f"{text[:half]}\n[... {len(text) - limit} characters left out ...]\n{text[-half:]}"
