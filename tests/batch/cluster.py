"""A real Slurm on this machine: one controller, two emulated nodes, as root and without systemd.

Owns its processes and its folder; ends both. Must not know what is submitted. Each node's daemon
has a host name of its own, so that mpirun starts its daemon on the other one through srun, as on
a real cluster; and a disk and a memory of its own: what `local` names is another folder on each
node, and so is /dev/shm.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from tests.helpers.mpi import CHECKOUT, SLACK

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "scontrol", "sinfo", "munged", "unshare")
NODES = ("n1", "n2")
_QUIET_S = 4.0
# Every other state passes: among them some that last a moment, such as SIGNALING.
_ENDS = ("BOOT_FAIL", "CANCELLED", "COMPLETED", "DEADLINE", "FAILED", "NODE_FAIL", "TIMEOUT")
_CONFIGURATION = """\
ClusterName=ci
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={port}
AuthType=auth/munge
AuthInfo=cred_expire=15,socket={folder}/munge/socket
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool/%n
TmpFS={folder}/tmp/%n
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldLogFile={folder}/ctld.log
SlurmdLogFile={folder}/slurmd-%n.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
SlurmdParameters=config_overrides
JobRequeue=1
KillWait=2
MinJobAge=3600
SlurmdTimeout=300
MessageTimeout=60
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
_NODE = "NodeName={name} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs=8 State=UNKNOWN\n"


def missing() -> str:
    """Why there can be no Slurm here; empty if there can."""
    absent = [name for name in PROGRAMS if _which(name) is None]
    if absent:
        return f"no {absent[0]} on this machine (.ci/run installs Slurm)"
    if os.geteuid() != 0:
        return "an emulated cluster needs root"
    probe = subprocess.run(["unshare", "-u", "-m", "true"], capture_output=True)
    return "" if probe.returncode == 0 else "no right to make namespaces (unshare -u -m)"


def _which(name: str) -> str | None:
    return shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin:/usr/bin")


class Cluster:
    """The running cluster."""

    def __init__(self, folder: Path) -> None:
        """Start it. Raises AssertionError with the logs if it does not come up."""
        self.folder = folder
        self._own: list[subprocess.Popen[bytes]] = []
        host = socket.gethostname()
        ports = _free_ports(1 + len(NODES))
        text = _CONFIGURATION.format(host=host, folder=folder, port=ports[0])
        for name, port in zip(NODES, ports[1:], strict=True):
            text += _NODE.format(name=name, host=host, port=port)
            for part in ("spool", "tmp", "disk"):
                (folder / part / name).mkdir(parents=True)
        self.local = folder / "local"
        self.local.mkdir()
        (folder / "state").mkdir()
        self.configuration = folder / "slurm.conf"
        self.configuration.write_text(text)
        self.env = {
            **{
                k: v for k, v in os.environ.items() if not k.startswith(("SLURM_", "OMPI_", "DIML"))
            },
            "SLURM_CONF": str(self.configuration),
            "PATH": f"{sys.prefix}/bin:{os.environ['PATH']}:/usr/sbin:/sbin",
            "OMPI_ALLOW_RUN_AS_ROOT": "1",
            "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1",
            "PYTHONPATH": str(CHECKOUT),
            "DIML_VENV": sys.prefix,
            "OMP_NUM_THREADS": "1",
        }
        self._munge()
        self._start([_which("slurmctld"), "-D", "-f", str(self.configuration)], "ctld")
        for name in NODES:
            self.start_node(name)
        deadline = time.monotonic() + 240
        while self.ask("sinfo", "-h", "-t", "idle", "-o", "%D").strip() != str(len(NODES)):
            assert time.monotonic() < deadline, self.logs()
            time.sleep(0.1)

    def _munge(self) -> None:
        """Start a munge daemon of this cluster's own: another cluster's end does not end it."""
        home = self.folder / "munge"
        home.mkdir()
        (home / "key").touch(0o600)
        (home / "key").write_bytes(os.urandom(128))
        files = {"key-file": "key", "log-file": "log", "pid-file": "pid", "seed-file": "seed"}
        places = [f"--{option}={home / name}" for option, name in files.items()]
        socket_file = home / "socket"
        # The folder is root's alone, as all of this cluster's users are: "--force" lets that be.
        self._start(
            [_which("munged"), "--foreground", "--force", f"--socket={socket_file}", *places],
            "munged",
        )
        ask = ["munge", "-n", "-S", str(socket_file)]
        deadline = time.monotonic() + 120
        while subprocess.run(ask, capture_output=True).returncode != 0:
            assert time.monotonic() < deadline, f"munge does not answer\n{self.logs()}"
            time.sleep(0.1)

    def _start(self, command: Sequence[str | None], name: str) -> subprocess.Popen[bytes]:
        words = [word for word in command if word is not None]
        with (self.folder / f"{name}.out").open("ab") as out:
            process = subprocess.Popen(words, stdout=out, stderr=out, env=self.env)
        self._own.append(process)
        return process

    def start_node(self, name: str) -> None:
        """Start the daemon of a node."""
        own = f"mount --bind {self.disk(name)} {self.local} && mount -t tmpfs tmpfs /dev/shm"
        slurmd = f"exec {_which('slurmd')} -D -f {self.configuration} -N {name}"
        command = f"hostname {name} && {own} && {slurmd}"
        self._start(["unshare", "-u", "-m", "sh", "-c", command], f"slurmd-{name}")

    def disk(self, name: str) -> Path:
        """What `local` is on a node, as it is seen from outside."""
        return self.folder / "disk" / name

    def in_memory(self, name: str) -> list[Path]:
        """What DiML has in the memory of a node."""
        (daemon,) = self.processes("slurmd", f"-N {name}")[:1]
        return list(Path(f"/proc/{daemon}/root/dev/shm").glob("diml-*"))

    def ask(self, *command: str) -> str:
        """What one of Slurm's commands prints."""
        done = subprocess.run(command, env=self.env, capture_output=True, text=True, timeout=120)
        return done.stdout

    def submit(
        self,
        script: Path | str,
        *arguments: str,
        options: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
    ) -> int:
        """Submit a script, with more variables in its environment, and return its job's number."""
        command = ["sbatch", "--parsable", *options, str(script), *arguments]
        with_more = {**self.env, **(env or {})}
        done = subprocess.run(
            command, env=with_more, cwd=self.folder, capture_output=True, text=True, timeout=120
        )
        assert done.returncode == 0, done.stderr
        return int(done.stdout.split(";")[0])

    def output(self, job: int) -> str:
        """What a job has printed so far."""
        (name,) = [*self.folder.glob(f"*-{job}.out")] or [self.folder / "none"]
        return name.read_text(errors="replace") if name.exists() else ""

    def state(self, job: int) -> str:
        """RUNNING, PENDING, COMPLETED, FAILED, ...; empty if the controller does not answer."""
        text = self.ask("scontrol", "show", "job", str(job))
        return text.partition("JobState=")[2].split(" ")[0]

    def ended(self, job: int) -> bool:
        """Whether a job will do nothing more."""
        return self.state(job) in _ENDS

    def wait_until(
        self, reached: Callable[[], object], job: int, what: str, timeout_s: float = 90
    ) -> None:
        """Wait for a moment of a job."""
        deadline = time.monotonic() + SLACK * timeout_s
        while not reached():
            assert time.monotonic() < deadline, f"{what}: never\n{self.report(job)}"
            time.sleep(0.1)

    def finish(self, job: int, timeout_s: float = 150, state: str = "COMPLETED") -> str:
        """Wait for a job's end; its output. A job put back into the queue starts soon again."""
        deadline = time.monotonic() + SLACK * timeout_s
        pending_s = 0.0
        while (now := self.state(job)) not in _ENDS:
            assert time.monotonic() < deadline, f"still {now}\n{self.report(job)}"
            pending_s = (pending_s or time.monotonic()) if now == "PENDING" else 0.0
            # Not before its last processes are gone (KillWait), or the node refuses it.
            if pending_s and time.monotonic() - pending_s > _QUIET_S:
                self.ask("scontrol", "update", f"JobId={job}", "StartTime=now")
                pending_s = 0.0
            time.sleep(0.3)
        assert now == state, self.report(job)
        return self.output(job)

    def report(self, job: int) -> str:
        """All that is known of a job."""
        return f"{self.ask('scontrol', 'show', 'job', str(job))}\n{self.output(job)}"

    def logs(self) -> str:
        """The daemons' last words."""
        files = [*self.folder.glob("*.log"), *self.folder.glob("*.out")]
        return "\n".join(f"== {f.name}\n{f.read_text(errors='replace')[-2000:]}" for f in files)

    def processes(self, *words: str) -> list[int]:
        """Pids of this cluster's processes whose command lines have all the words."""
        mark = f"SLURM_CONF={self.configuration}".encode()
        found = []
        for entry in Path("/proc").iterdir():
            with contextlib.suppress(OSError):
                if entry.name.isdigit() and mark in (entry / "environ").read_bytes().split(b"\0"):
                    line = (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode()
                    if all(word in line for word in words):
                        found.append(int(entry.name))
        return found

    def ranks(self, node: str, *words: str) -> list[int]:
        """Pids of the ranks on a node whose command lines have all the words, by rank."""
        found = {}
        for pid in self.processes(*words):
            with contextlib.suppress(OSError):
                text = Path(f"/proc/{pid}/environ").read_bytes().decode(errors="replace")
                env = dict(item.split("=", 1) for item in text.split("\0") if "=" in item)
                if "PMIX_RANK" in env and env.get("PMIX_HOSTNAME") == node:
                    found[int(env["PMIX_RANK"])] = pid
        return [found[rank] for rank in sorted(found)]

    def end(self) -> None:
        """End everything that this cluster has started."""
        with contextlib.suppress(subprocess.TimeoutExpired):
            self.ask("scancel", "--user=root", "--full")
        for process in reversed(self._own):
            process.terminate()
        for process in self._own:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
        for pid in self.processes():
            if pid != os.getpid():
                with contextlib.suppress(OSError):
                    os.kill(pid, signal.SIGKILL)
        for process in self._own:
            process.wait(10)


def _free_ports(count: int) -> list[int]:
    """Ports that nobody has, below those that the system gives away by itself: what other tests
    start would be given them before Slurm, or while the daemon of a node is down."""
    lowest = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    candidates = list(range(max(1024, lowest - 8000), lowest))
    random.shuffle(candidates)
    ports: list[int] = []
    while len(ports) < count:
        with socket.socket() as one, contextlib.suppress(OSError):
            one.bind(("127.0.0.1", port := candidates.pop()))
            ports.append(port)
    return ports


@contextlib.contextmanager
def running(folder: Path) -> Iterator[Cluster]:
    """A cluster for the length of a `with` block."""
    cluster = Cluster(folder)
    try:
        yield cluster
    finally:
        cluster.end()
