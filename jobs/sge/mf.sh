#!/bin/bash
# Matrix factorization on the parameter server: qsub jobs/sge/mf.sh
#$ -N diml-mf
# The parallel environment is the site's: `qconf -spl` lists them.
#$ -pe mpi 8
#$ -l h_rt=01:00:00
#$ -j y -cwd
# May be run again (exit status 99), and is warned by USR2 before it is killed.
#$ -r y -notify
#$ -S /bin/bash

# Where DiML is installed: a virtual environment, or a site's modules (`module load ...`).
source "${DIML_VENV:-.venv}/bin/activate"
# The ranks are the parallelism.
export OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 NUMBA_NUM_THREADS=1
# A run goes on from what it finds here. A directory on each node's own disk does as well.
checkpoints=${DIML_CHECKPOINTS:-$PWD/checkpoints-mf}

# Never srun: only mpirun starts ranks that can be replaced, and diml run calls it.
diml run -n 6 --spares 1 --servers 1 -- \
  diml.jobs.mf --datafile ratings.txt --test_fraction 0.1 --output_prefix mf \
  --K 32 --bias --update nnz --lambda 6 --init_step_size 0.05 --num_iterations 30 \
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
