#!/usr/bin/env bash
# A training on several GPU nodes under SLURM: one process a node, all of its GPUs.
#
#   sbatch --nodes=4 --gres=gpu:8 --time=24:00:00 launch/slurm.sh COMMAND
#
# For example
#   sbatch --nodes=2 --gres=gpu:8 launch/slurm.sh python -m launch.train --config=configs/distill.py:v1,bk_base \
#     --config.teacher=DIR --config.data=DIR --workdir=DIR
#
# The folder that it is submitted from, its .venv and the workdir must be on a disk that all nodes see. Two minutes
# before the time is over the training saves its state, and the job queues itself again until the training has ended.
#SBATCH --job-name=bksdm
#SBATCH --ntasks-per-node=1
#SBATCH --output=slurm-%j.log
#SBATCH --open-mode=append
#SBATCH --requeue
#SBATCH --signal=B:USR1@120
set -euo pipefail

[ $# -ge 1 ] || {
  echo "error: no command; sbatch --nodes=N --gres=gpu:M launch/slurm.sh python -m launch.train ..." >&2
  exit 1
}
[ -n "${SLURM_JOB_ID:-}" ] || {
  echo "error: not a SLURM job; submit it: sbatch launch/slurm.sh COMMAND" >&2
  exit 1
}
if [ -d .venv ]; then
  PATH=$PWD/.venv/bin:$PATH
fi

again() {
  echo "the time is nearly over: the training saves its state"
  scancel --signal=TERM "$SLURM_JOB_ID" # to the steps; srun itself would answer a SIGTERM by killing them
  wait "$training" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap again USR1

srun --kill-on-bad-exit=1 "$@" --distributed=auto &
training=$!
wait "$training"
