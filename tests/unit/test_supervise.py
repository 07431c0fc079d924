"""`diml run`: its mpirun lines, what it makes of an end, its loop over fake launchers."""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from pathlib import Path

import pytest

from diml.cli import main
from diml.errors import Misuse
from diml.world import doctor, node_memory, supervise
from diml.world.command import Order, hydra_line, mpirun_line, program_words, shares
from diml.world.hosts import Allocation, Host
from diml.world.supervise import End, Supervisor, judge

JOB = Order(3, ("-m", "diml.jobs.drill", "--rounds", "2"))
TWO = (Host("n1", 2), Host("n2", 2))


def line(where: Allocation, names_hosts: bool = False, **env: str) -> str:
    words = mpirun_line("mpirun", JOB, where, env, names_hosts)
    return " ".join(words).replace(sys.executable, "python")


def test_the_line_on_a_laptop() -> None:
    assert line(Allocation("none")) == "mpirun -n 3 python -m diml.jobs.drill --rounds 2"


def test_slurm_is_asked_by_mpirun_itself_until_a_node_is_lost() -> None:
    slurm = Allocation("Slurm", "7", TWO)
    spread = "--map-by node:OVERSUBSCRIBE"
    assert line(slurm) == f"mpirun -n 3 {spread} python -m diml.jobs.drill --rounds 2"
    left = Allocation("Slurm", "7", TWO[:1])
    assert "-n 3 --host n1:3 python" in line(left, names_hosts=True)


def test_elsewhere_hosts_are_named_and_variables_carried() -> None:
    got = line(
        Allocation("PBS", "7", TWO), DIML_SPARES="1", OMP_NUM_THREADS="1", HOME="/", PYTHONPATH="x"
    )
    assert (
        "-n 3 --host n1:2,n2:2 --map-by node:OVERSUBSCRIBE -x DIML_SPARES -x OMP_NUM_THREADS "
        "-x PYTHONPATH python" in got
    )
    petuum = Allocation("host file", hosts=(Host("10.0.0.1"), Host("10.0.0.2")))
    assert "--host 10.0.0.1:2,10.0.0.2:2" in line(petuum)


def test_no_host_gets_more_than_its_slots_while_another_has_some_left() -> None:
    """By nodes, mpirun would give both five; by slots, one after the other, neighbours one host."""
    for system in ("Slurm", "PBS"):
        where = Allocation(system, "7", (Host("n1", 8), Host("n2", 2)))
        words = " ".join(mpirun_line("mpirun", Order(10, ("x",)), where, {}, False))
        assert "--host n1:8,n2:2 --map-by slot:OVERSUBSCRIBE --rank-by node" in words
    for slots, processes, wanted in (
        ((8, 2), 10, [8, 2]),
        ((8, 2), 12, [10, 2]),
        ((8, 2, 1), 5, [2, 2, 1]),
        ((2, 2), 5, [3, 2]),
        ((None, None), 3, [2, 1]),
    ):
        assert shares(processes, [Host("n", count) for count in slots]) == wanted


def test_mpichs_launcher_has_words_of_its_own() -> None:
    words = hydra_line("mpiexec", JOB, Allocation("PBS", "7", TWO))
    text = " ".join(words).replace(sys.executable, "python")
    assert text == "mpiexec -n 3 -hosts n1:2,n2:1 python -m diml.jobs.drill --rounds 2"


def test_a_job_is_a_module_or_a_script(tmp_path: Path) -> None:
    script = tmp_path / "job.py"
    script.touch()
    assert program_words(["diml.jobs.mf", "--K", "3"]) == ("-m", "diml.jobs.mf", "--K", "3")
    assert program_words([str(script), "x"]) == (str(script), "x")
    assert program_words(["-m", "a.b"]) == ("-m", "a.b")
    for bad in ([], ["no such"], ["absent/job.py"], ["absent.py"], ["absent"],
                ["diml.jobs.absent"], ["diml.jobs"], ["diml.jobs.mf.absent"],
                ["python", str(script)], [sys.executable, str(script)]):  # fmt: skip
        with pytest.raises(Misuse):
            program_words(bad)


@pytest.mark.parametrize(
    ("ends", "again", "status"),
    [
        ([End(0, True, 5)], False, 0),
        ([End(3, True, 5)], False, 3),  # the program's own code after the job
        ([End(0, False, 5)], True, 0),  # a lost node: mpirun says 0
        ([End(137, False, 5)], True, 0),
        ([End(-6, False, 5)], True, 0),  # mpirun itself crashed
        ([End(75, False, 5)], True, 0),
        ([End(75, False, 5, stopped=True)], False, 75),
        ([End(0, False, 5, stopped=True)], False, 1),
        ([End(2, False)], False, 2),
        ([End(1, False, 5)], False, 1),
        ([End(3, False, 5, left=3)], False, 3),  # chosen by the program
        ([End(14, False, 5)], True, 0),  # by MPI
        ([End(14, False, 5, left=1)], True, 0),
        ([End(14, False, begun=False)], False, 14),
        ([End(signal.SIGUSR2, False)], True, 0),  # lost in the start
        ([End(0, False, begun=False, alone=True)], False, 0),  # no program of DiML's
        ([End(0, False, begun=False, alone=True, cut=True)], True, 0),  # all were killed before
        ([End(0, False, begun=False)], True, 0),  # or a node lost before
        ([End(0, False, 5, on_disk=True), End(0, False, 5, on_disk=True)], False, 1),
        ([End(0, False), End(0, False)], False, 1),
        ([End(0, False, 3), End(0, False, 5)], True, 0),
        ([End(0, False, n, on_disk=True) for n in range(4)], False, 75),
        ([End(0, False, n) for n in range(4)], False, 1),  # what it had is in no memory any more
        ([End(0, False, 3), End(0, True, 5)], False, 0),
    ],
)
def test_what_an_end_means(ends: list[End], again: bool, status: int) -> None:
    verdict = judge(ends, max_restarts=3)
    assert verdict.again == again
    assert again or verdict.status == status


def supervisor(folder: Path, script: str, max_restarts: int = 3) -> Supervisor:
    launcher = folder / "mpirun"
    launcher.write_text(f"#!/bin/sh\n{script}\n")
    launcher.chmod(0o700)
    return Supervisor(str(launcher), JOB, Allocation("none"), max_restarts, dict(os.environ))


def test_a_lost_job_is_started_again_until_it_is_done(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    script = """
        ln -sfn 0 $DIML_SUPERVISED/begun; echo "attempt $DIML_ATTEMPT, $2 processes, $6"
        ln -sfn $((DIML_ATTEMPT * 5)) $DIML_SUPERVISED/version
        mkdir -p $DIML_NODE_MEMORY; echo $DIML_SUPERVISED $DIML_NODE_MEMORY > PATHS
        [ $DIML_ATTEMPT = 2 ] && ln -sfn 0 $DIML_SUPERVISED/done
        exit 0""".replace("PATHS", str(tmp_path / "paths"))
    assert supervisor(tmp_path, script).run() == 0
    printed = capfd.readouterr()
    assert printed.out == "attempt 1, 3 processes, --rounds\nattempt 2, 3 processes, --rounds\n"
    assert printed.err.count("diml run: started again") == 1
    assert "exit status 0, and it never said it was done" in printed.err
    for path in (tmp_path / "paths").read_text().split():
        assert not Path(path).exists()


def test_a_crash_loop_ends(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    script = f"ln -sfn 4 $DIML_SUPERVISED/version; echo x >> {tmp_path}/starts; exit 137"
    assert supervisor(tmp_path, script).run() == 1
    assert (tmp_path / "starts").read_text() == "x\nx\n"
    assert "twice without getting beyond version 4: given up" in capfd.readouterr().err


def test_without_restarts_there_is_one_attempt(tmp_path: Path) -> None:
    script = f"echo x >> {tmp_path}/starts; exit 137"
    assert supervisor(tmp_path, script, max_restarts=0).run() == 1
    assert (tmp_path / "starts").read_text() == "x\n"


def tell_later(number: int, seconds: float) -> None:
    """Send this process a signal some time after it has begun to listen to it."""
    deaf = signal.getsignal(number)

    def tell() -> None:
        while signal.getsignal(number) is deaf:
            time.sleep(0.005)
        time.sleep(seconds)
        os.kill(os.getpid(), number)

    threading.Thread(target=tell, daemon=True).start()


@pytest.mark.parametrize("number", [signal.SIGUSR1, signal.SIGUSR2, signal.SIGTERM, signal.SIGHUP])
def test_a_stop_signal_reaches_the_job_as_usr1_once_it_is_ready(
    tmp_path: Path, number: int
) -> None:
    if signal.getsignal(number) == signal.SIG_IGN:
        pytest.skip("the tests run under nohup")
    script = """
        trap 'ln -sfn 9 $DIML_SUPERVISED/version; exit 75' USR1
        sleep 0.8; ln -sfn 1 $DIML_SUPERVISED/ready
        i=0; while [ $((i += 1)) -le 600 ]; do sleep 0.1; done; exit 3"""
    tell_later(number, 0.3)
    assert supervisor(tmp_path, script).run() == 75  # by the signal, not by the script's own end


def test_ctrl_c_reaches_the_job_though_it_was_told_to_stop_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(supervise, "_CTRL_C_S", 0.5)
    script = """
        trap '' USR1; trap 'touch TOLD; exit 9' INT
        ln -sfn 1 $DIML_SUPERVISED/ready
        i=0; while [ $((i += 1)) -le 600 ]; do sleep 0.1; done""".replace(
        "TOLD", str(tmp_path / "told")
    )
    tell_later(signal.SIGTERM, 0.3)
    tell_later(signal.SIGINT, 0.6)
    tell_later(signal.SIGUSR1, 0.9)  # no reason to forget the Ctrl-C
    assert supervisor(tmp_path, script).run() == 130
    assert (tmp_path / "told").exists()


def test_what_does_not_end_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("_CTRL_C_S", "_END_S"):
        monkeypatch.setattr(supervise, name, 0.2)
    tell_later(signal.SIGINT, 0.1)
    program = "import signal, time; signal.signal(signal.SIGINT, signal.SIG_IGN); time.sleep(30)"
    assert supervisor(tmp_path, f'exec "{sys.executable}" -c "{program}"').run() == 130
    assert "does not end: killed" in capfd.readouterr().err


@pytest.mark.parametrize(("done", "status", "starts"), [(True, 0, 1), (False, 1, 2)])
def test_a_launcher_that_stays_behind_is_killed_and_one_at_work_is_not(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    done: bool,
    status: int,
    starts: int,
) -> None:
    monkeypatch.setattr(supervise, "_STAYS_S", 0.3)
    # It neither ends nor looks after the process that it has started, which works for a while.
    program = f"""
import os, pathlib, subprocess, time
subprocess.Popen(["sh", "-c", "sleep 0.8; echo worked"])
word = pathlib.Path(os.environ["DIML_SUPERVISED"])
for name in ("begun", "done")[: 1 + {done}]:
    (word / name).symlink_to("0")
time.sleep(30)
"""
    (tmp_path / "stays.py").write_text(program)
    script = f'exec "{sys.executable}" "{tmp_path}/stays.py"'
    assert supervisor(tmp_path, script, 1).run() == status
    printed = capfd.readouterr()
    assert printed.out == "worked\n" * starts
    assert printed.err.count("stays though the last process has left: killed") == starts


def test_a_job_elsewhere_could_not_say_that_it_is_done(tmp_path: Path) -> None:
    run = supervisor(tmp_path, "exit 0")
    run.allocation = Allocation("Slurm", "7", (Host("no-such-host.invalid", 2),))
    with pytest.raises(Misuse, match=r"is none of the hosts \(no-such-host.invalid\)"):
        run.run()


def test_a_memory_that_cannot_be_written_is_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    absent = tmp_path / "absent" / "folder"
    monkeypatch.setattr(node_memory, "new_folder", lambda: absent)
    with pytest.raises(Misuse, match=r"no folder in the memory of the node: .*absent"):
        supervisor(tmp_path, "exit 0").run()


def test_a_log_on_a_full_disk_is_no_reason_to_leave_the_job(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    script = f"ln -sfn 0 $DIML_SUPERVISED/done; sleep 0.3; touch {tmp_path}/ended"
    with open("/dev/full", "w") as full:
        monkeypatch.setattr(sys, "stderr", full)
        assert supervisor(tmp_path, script).run() == 0
        monkeypatch.undo()
        with contextlib.suppress(OSError):
            full.close()
    assert (tmp_path / "ended").exists()


def test_handlers_are_given_back(tmp_path: Path) -> None:
    before = signal.getsignal(signal.SIGTERM)
    supervisor(tmp_path, "exit 2").run()
    assert signal.getsignal(signal.SIGTERM) is before


_SHOW = 'echo "$2 ${DIML_SERVERS:--} ${DIML_ON_FAILURE:--}"; ln -sfn 0 $DIML_SUPERVISED/done'


@pytest.mark.parametrize(
    ("version", "words", "wanted"),
    [
        ("Open MPI", ["-n", "2", "--", "diml.jobs.drill"], "2 - -"),
        (
            "Open MPI",
            ["-n", "2", "--spares", "1", "--servers", "2", "--", "email.message"],
            "5 2 -",
        ),
        ("Open MPI", ["-n", "2", "--", "diml.jobs.mf", "--K", "3"], "3 1 -"),
        ("Open MPI", ["-n", "1", "diml.jobs.mf"], "1 - -"),
        ("Open MPI", ["-n", "2", "diml.jobs.mf", "--engine", "rotate"], "2 - -"),
        ("Open MPI", ["-n", "2", "diml.jobs.logistic", "--datafile", "x"], "3 1 -"),
        ("Open MPI", ["-n", "2", "diml.jobs.logistic", "--datafile=x", "--method=admm"], "2 - -"),
        ("HYDRA build details", ["-n", "2", "diml.jobs.mf"], "3 1 stop"),
    ],
)
def test_spares_and_servers_come_on_top(
    version: str,
    words: list[str],
    wanted: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
) -> None:
    launcher = tmp_path / "mpirun"
    launcher.write_text(f"#!/bin/sh\n[ $1 = --version ] && echo '{version}' && exit\n{_SHOW}\n")
    launcher.chmod(0o700)
    monkeypatch.setattr(doctor, "find_launcher", lambda: launcher)
    monkeypatch.delenv("DIML_SERVERS", raising=False)
    monkeypatch.delenv("DIML_ON_FAILURE", raising=False)
    assert main(["run", *words]) == 0
    assert capfd.readouterr().out == f"{wanted}\n"


def test_ssh_does_not_wait_for_ever_for_a_host(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    launcher, hosts = tmp_path / "mpirun", tmp_path / "hosts"
    launcher.write_text('#!/bin/sh\necho "Open MPI $PRTE_MCA_plm_ssh_args"; exit 3\n')
    launcher.chmod(0o700)
    hosts.write_text("localhost slots=2\n")
    command = ["--mpirun", str(launcher), "--hosts", str(hosts), "--", "email.message"]
    assert main(["run", "-n", "2", *command]) == 3
    assert "Open MPI -o ConnectTimeout=30\n" in capfd.readouterr().out
    monkeypatch.setenv("PRTE_MCA_plm_ssh_args", "-p 2222")
    assert main(["run", "-n", "2", *command]) == 3
    assert "Open MPI -p 2222\n" in capfd.readouterr().out


@pytest.mark.parametrize(
    "words",
    [
        ["-n", "0", "--", "diml.jobs.drill"],
        ["-n", "two", "--", "diml.jobs.drill"],
        ["-n", "2"],
        ["-n", "2", "--", "diml.jobs.drill", "--spares", "1"],
        ["-n", "2", "--hosts", "/absent", "--", "diml.jobs.drill"],
        ["-n", "2", "--", "diml.jobs.none"],
        ["-n", "2", "--", "diml.jobs.logistic", "--bogus"],
        ["-n", "2", "--mpirun", "/bin/echo", "--spares", "1", "--", "diml.jobs.drill"],
        ["-n", "2", "--mpirun", "/absent", "--", "diml.jobs.drill"],
    ],
)
def test_misuse_is_one_line(words: list[str], capfd: pytest.CaptureFixture[str]) -> None:
    assert main(["run", *words]) == 2
    printed = capfd.readouterr()
    assert printed.err.startswith("diml: ") and printed.err.count("\n") == 1, printed.err


@pytest.mark.parametrize(
    "env",
    [{"OMPI_COMM_WORLD_SIZE": "1"}, {"SLURM_PROCID": "0", "SLURM_STEP_NUM_TASKS": "4"}],
    ids=["mpirun", "srun"],
)
def test_one_of_many_starts_no_job(
    env: dict[str, str], monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    assert main(["run", "-n", "2", "diml.jobs.drill"]) == 2
    assert "diml run starts mpirun itself, once: give it without" in capfd.readouterr().err
