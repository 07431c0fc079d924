"""Batch scripts for Slurm, PBS and SGE: one text, rendered for a system, a job and a size.

Owns the scripts in the folder `jobs/` of the project (they are what `script` gives for `JOBS`; a
test holds that) and the one that `diml doctor --cluster` prints. Pure.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

System = Literal["slurm", "pbs", "sge"]
SUFFIX: Mapping[System, str] = {"slurm": "sbatch", "pbs": "pbs", "sge": "sh"}
# So long before the wall time the job is told to stop: it finishes its step and a checkpoint.
WARNING_S = 120


@dataclass(frozen=True, slots=True)
class Job:
    """What a script runs.

    Attributes:
        name: of the job, and of the script's file.
        about: what it is, for the first comment.
        command: module and flags, a line each; the shell expands variables in them.
        workers, spares, servers: processes.
        minutes: wall time.
    """

    name: str
    about: str
    command: tuple[str, ...]
    workers: int
    spares: int = 1
    servers: int = 0
    minutes: int = 60

    @property
    def processes(self) -> int:
        """All of them."""
        return self.workers + self.spares + self.servers


JOBS = (
    Job(
        "mf",
        "Matrix factorization on the parameter server",
        (
            "diml.jobs.mf --datafile ratings.txt --test_fraction 0.1 --output_prefix mf",
            "--K 32 --bias --update nnz --lambda 6 --init_step_size 0.05 --num_iterations 30",
        ),
        workers=6,
        servers=1,
    ),
    Job(
        "lasso",
        "Lasso by scheduled coordinate descent",
        ("diml.jobs.lasso --data_xfile design.libsvm --lambda_ratio 0.02 --output lasso.txt",),
        workers=7,
    ),
    Job(
        "logistic",
        "Logistic regression by L-BFGS on collectives",
        ("diml.jobs.logistic --datafile design.libsvm --method lbfgs --l2 1e-4",),
        workers=7,
    ),
    Job(
        "drill",
        "Recovery drill: two ranks are killed, the bits must stay",
        ("diml.jobs.drill", "--drill 1,1,1,0 --drill 2,2,0,0,inside"),
        workers=6,
        spares=2,
        minutes=10,
    ),
)

_HEAD: Mapping[System, str] = {
    "slurm": """\
#SBATCH --job-name=diml-{name}
#SBATCH --nodes={nodes}
#SBATCH --ntasks-per-node={per_node}
#SBATCH --time={clock}
#SBATCH --output=%x-%j.out
# The output of a requeued job goes on in the same file.
#SBATCH --requeue --open-mode=append
# Two minutes before the wall time this script gets USR1.
#SBATCH --signal=B:USR1@{warning_s}
# A lost node does not end the allocation: diml run goes on with the others.
#SBATCH --no-kill
""",
    "pbs": """\
#PBS -N diml-{name}
#PBS -l select={nodes}:ncpus={per_node}:mpiprocs={per_node}
#PBS -l walltime={clock}
#PBS -j oe
#PBS -r y
""",
    "sge": """\
#$ -N diml-{name}
# The parallel environment is the site's: `qconf -spl` lists them.
#$ -pe mpi {processes}
#$ -l h_rt={clock}
#$ -j y -cwd
# May be run again (exit status 99), and is warned by USR2 before it is killed.
#$ -r y -notify
#$ -S /bin/bash
""",
}
_BODY = """
# Where DiML is installed: a virtual environment, or a site's modules (`module load ...`).
source "${{DIML_VENV:-.venv}}/bin/activate"
# The ranks are the parallelism.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1
# A run goes on from what it finds here. A directory on each node's own disk does as well.
checkpoints=${{DIML_CHECKPOINTS:-$PWD/checkpoints-{name}}}

# Never srun: only mpirun starts ranks that can be replaced, and diml run calls it.
{before}diml run -n {workers}{extra} -- \\
  {command} \\
  --checkpoint-dir "$checkpoints" "$@" &
run=$!
"""
_WAIT = """\
# wait returns early when a signal comes.
while kill -0 $run 2>/dev/null; do wait $run; done
wait $run
status=$?
"""
_TRAPS = """\
# All ranks agree on a step, write a checkpoint and leave with 75. So they do if the job is taken
# out of the queue, which comes as TERM: then it stays out.
told=
trap 'told=${told:-USR1}; kill -USR1 $run 2>/dev/null' USR1
trap 'told=${told:-TERM}; kill -USR1 $run 2>/dev/null' TERM
"""
_TAIL: Mapping[System, str] = {
    "slurm": """\
{traps}{wait}\
if [ $status -eq 75 ] && [ "$told" != TERM ]; then
  echo "to be resumed: back to the queue"
  scontrol requeue "$SLURM_JOB_ID" && exit 0
fi
exit $status
""",
    "pbs": """\
{traps}{wait}\
if [ $status -eq 75 ] && [ "$told" != TERM ]; then
  echo "to be resumed: submitted again"
  names=${{!DIML_*}}  # with the variables that it was submitted with
  qsub ${{names:+-v "${{names// /,}}"}} "${{DIML_SCRIPT:-jobs/pbs/{name}.pbs}}" && exit 0
fi
exit $status
""",
    "sge": """\
# All ranks agree on a step, write a checkpoint and leave with 75.
trap 'kill -USR1 $run 2>/dev/null' USR1 USR2 TERM
{wait}\
# 99 tells SGE to put the job back into the queue.
[ $status -eq 75 ] && exit 99
exit $status
""",
}
_CHANGE_FOLDER: Mapping[System, str] = {
    "slurm": "",
    "pbs": 'cd "$PBS_O_WORKDIR" || exit\n',
    "sge": "",
}
# PBS gives no warning before the wall time.
_BEFORE: Mapping[System, str] = {
    "slurm": "",
    "pbs": "# PBS gives no warning: USR1 comes from here, {warning_s} s before the wall time.\n"
    "timeout --foreground --preserve-status -s USR1 {warned_s} \\\n",
    "sge": "",
}


def script(system: System, job: Job, nodes: int = 2) -> str:
    """The text of a batch script that runs a job on so many nodes."""
    extra = (f" --spares {job.spares}" if job.spares else "") + (
        f" --servers {job.servers}" if job.servers else ""
    )
    words = {
        "name": job.name,
        "nodes": nodes,
        "processes": job.processes,
        "per_node": math.ceil(job.processes / nodes),
        "clock": f"{job.minutes // 60:02d}:{job.minutes % 60:02d}:00",
        "warning_s": WARNING_S,
        "warned_s": 60 * job.minutes - WARNING_S,
        "workers": job.workers,
        "extra": extra,
        "command": " \\\n  ".join(job.command),
        "wait": _WAIT,
        "traps": _TRAPS,
    }
    words["before"] = _BEFORE[system].format(**words)
    head = _HEAD[system].format(**words)
    tail = _TAIL[system].format(**words)
    first = (
        f"#!/bin/bash\n# {job.about}: {SUBMIT[system]} jobs/{system}/{job.name}.{SUFFIX[system]}\n"
    )
    return first + head + "\n" + _CHANGE_FOLDER[system] + _BODY.format(**words).lstrip() + tail


SUBMIT: Mapping[System, str] = {"slurm": "sbatch", "pbs": "qsub", "sge": "qsub"}
