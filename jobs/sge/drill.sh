#!/bin/bash
# Recovery drill: two ranks are killed, the bits must stay: qsub jobs/sge/drill.sh
#$ -N diml-drill
# The parallel environment is the site's: `qconf -spl` lists them.
#$ -pe mpi 8
#$ -l h_rt=00:10:00
#$ -j y -cwd
# May be run again (exit status 99), and is warned by USR2 before it is killed.
#$ -r y -notify
#$ -S /bin/bash

# Where DiML is installed: a virtual environment, or a site's modules (`module load ...`).
source "${DIML_VENV:-.venv}/bin/activate"
# The ranks are the parallelism.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1
# A run goes on from what it finds here. A directory on each node's own disk does as well.
checkpoints=${DIML_CHECKPOINTS:-$PWD/checkpoints-drill}

# Never srun: only mpirun starts ranks that can be replaced, and diml run calls it.
diml run -n 6 --spares 2 -- \
  diml.jobs.drill \
  --drill 1,1,1,0 --drill 2,2,0,0,inside \
  --checkpoint-dir "$checkpoints" "$@" &
run=$!
# All ranks agree on a step, write a checkpoint and leave with 75.
trap 'kill -USR1 $run 2>/dev/null' USR1 USR2 TERM
# wait returns early when a signal comes.
while kill -0 $run 2>/dev/null; do wait $run; done
wait $run
status=$?
# 99 tells SGE to put the job back into the queue.
[ $status -eq 75 ] && exit 99
exit $status
