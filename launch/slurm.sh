#!/usr/bin/env bash
# Training on several GPU nodes under SLURM, with one process per node that uses all of its GPUs.
#
#   sbatch --nodes=4 --gres=gpu:8 --time=24:00:00 launch/slurm.sh COMMAND
#
# For example
#   sbatch --nodes=2 --gres=gpu:8 launch/slurm.sh python -m launch.train --config=configs/distill.py:v1,bk_base \
#     --config.teacher=DIR --config.data=DIR --workdir=DIR
#
# The folder it is submitted from, its .venv and the workdir must be on a shared file system. Two minutes before the
# time limit the training saves its state and the job requeues itself, until the training is finished.
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
  echo "time limit reached: saving the training state"
  scancel --signal=TERM "$SLURM_JOB_ID" # signals the job steps; srun would kill them on SIGTERM
  wait "$training" || true
  scontrol requeue "$SLURM_JOB_ID"
  exit 0
}
trap again USR1

srun --kill-on-bad-exit=1 "$@" --distributed=auto &
training=$!
wait "$training"
