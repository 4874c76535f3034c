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
# time limit, and when the job is preempted, the training saves its state and the job requeues itself, until the
# training is finished. It is also requeued when the training ends with 75, 130 or 143; any other status ends the job,
# and so does scancel. For a preempted training to save, the partition or QOS must have a GraceTime.
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
export FAILED=$PWD/slurm-$SLURM_JOB_ID.failed
rm -f "$FAILED"

# At preemption SLURM sends SIGTERM to the steps, and to this script only without a GraceTime or at scancel. USR1 comes
# before the time limit, and at preemption where PreemptParameters=send_user_signal is set.
signalled=''
# shellcheck disable=SC2329
save() { # SIGNAL
  signalled=$1 interrupted=1
  echo "SIG$1: saving the training state"
  scancel --signal=TERM "$SLURM_JOB_ID" || true # signals the job steps; srun would kill them on SIGTERM
}
trap 'save USR1' USR1
trap 'save TERM' TERM

# srun reports the highest status of all processes: 75 of one that was stopped would hide the 1 of the one that failed.
# shellcheck disable=SC2016
PROCESS='trap : TERM
"$@"
status=$?
case $status in 0 | 75 | 130 | 143) ;; *) echo $status >>"$FAILED" ;; esac
exit $status'
srun --kill-on-bad-exit=1 bash -c "$PROCESS" process "$@" --distributed=auto &
training=$!
while :; do
  interrupted='' status=0
  wait "$training" || status=$?
  [ -n "$interrupted" ] || break
done
trap '' USR1 TERM
if [ -s "$FAILED" ]; then
  read -r status <"$FAILED"
  rm "$FAILED"
fi

field() { # NAME: of this job
  scontrol show job "$SLURM_JOB_ID" | tr ' ' '\n' | sed -n "s/^$1=//p" | head -n 1
}

requeued() { # by SLURM
  [ "$(field Restarts)" -gt "${SLURM_RESTART_COUNT:-0}" ] 2>/dev/null
}

cancelled() { # by its user: the job is ending, but wasn't preempted
  [ "$signalled" = TERM ] && [ "$(field JobState)" != RUNNING ] && [[ $(field PreemptTime) != [0-9]* ]] && ! requeued
}

case $status${signalled:+ signalled} in
  75* | 130* | 143* | '137 signalled') ;;
  *) exit "$status" ;;
esac
if cancelled; then
  exit "$status"
elif requeued; then
  echo "SLURM has requeued the job"
elif ! scontrol requeue "$SLURM_JOB_ID"; then
  echo "error: the job can't be requeued; submit the same command again: it continues" >&2
  exit 75
fi
