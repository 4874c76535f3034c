#!/usr/bin/env bash
# Creates, uses and deletes a TPU pod slice on Google Cloud. Needs `gcloud`, logged in.
#
#   launch/tpu_pod.sh create  NAME TYPE     TYPE: v4-32, v5litepod-16, v5p-32, v6e-16, ...
#   launch/tpu_pod.sh install NAME          on every worker: this commit, with JAX for TPUs
#   launch/tpu_pod.sh run     NAME COMMAND  on every worker, in the background; doesn't need this machine to stay on
#   launch/tpu_pod.sh logs    NAME          follows the log of the first worker
#   launch/tpu_pod.sh stop    NAME          SIGTERM to every worker: a training saves its state and ends
#   launch/tpu_pod.sh delete  NAME          asks first
#
# For example
#   launch/tpu_pod.sh create bk v4-32
#   launch/tpu_pod.sh install bk
#   launch/tpu_pod.sh run bk python -m launch.train --config=configs/distill.py:v1,bk_base \
#     --config.teacher=/mnt/bk/teacher --config.data=gs://bucket/latents --workdir=/mnt/bk/base --distributed=auto
#
# All workers must see the workdir of a training: use Filestore, or a bucket mounted by gcsfuse.
# Environment variables: ZONE (default us-central2-b), PROJECT (default: gcloud's), VERSION (runtime; default by TYPE).
# SPOT=1 requests a preemptible slice: after preemption, `delete`, `create`, `install` and the same `run` continue from
# the last checkpoint.
set -euo pipefail

ZONE=${ZONE:-us-central2-b}
FOLDER=bksdm_jax

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p}' "$0"
}

fail() {
  echo "error: $*" >&2
  exit 1
}

tpu() {
  local verb=$1
  shift
  gcloud compute tpus tpu-vm "$verb" "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}
}

on_workers() { # WORKERS COMMAND
  tpu ssh "$NAME" --worker="$1" --command="$2"
}

version_of() {
  case $1 in
    v4-* | v3-* | v2-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "TYPE: $1; expected v4-32, v5litepod-16, v5p-32, v6e-16 or the like" ;;
  esac
}

[ $# -ge 2 ] || {
  usage
  exit 1
}
VERB=$1
NAME=$2
shift 2
[[ $NAME =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] || fail "NAME: $NAME; expected lowercase letters, digits and dashes"
command -v gcloud >/dev/null || fail "gcloud isn't installed; see https://cloud.google.com/sdk"

case $VERB in
  create)
    [ $# -eq 1 ] || fail "create NAME TYPE"
    runtime=${VERSION:-$(version_of "$1")}
    tpu create "$NAME" --accelerator-type="$1" --version="$runtime" ${SPOT:+--spot}
    ;;
  install)
    [ -f pyproject.toml ] || fail "pyproject.toml: not found; run from the folder that contains it"
    [ -z "$(git status --porcelain)" ] || echo "warning: uncommitted changes aren't installed" >&2
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git archive --format=tar.gz --prefix="$FOLDER/" HEAD >"$archive"
    tpu scp "$archive" "$NAME:$FOLDER.tar.gz" --worker=all
    # The runtimes have Python 3.10.
    on_workers all "tar -xzf $FOLDER.tar.gz && cd $FOLDER && sudo apt-get -qq update && \
sudo apt-get -qq install -y make python3.11-venv && make install ACCELERATOR=tpu PYTHON=python3.11"
    ;;
  run)
    [ $# -ge 1 ] || fail "run NAME COMMAND"
    printf -v command '%q ' "$@"
    on_workers all "cd $FOLDER && { PATH=\$PWD/.venv/bin:\$PATH nohup $command >>run.log 2>&1 </dev/null & echo \$! >run.pid; }"
    ;;
  logs)
    on_workers 0 "tail -n 50 -F $FOLDER/run.log"
    ;;
  stop)
    on_workers all "kill -TERM \$(cat $FOLDER/run.pid)"
    ;;
  delete)
    tpu delete "$NAME"
    ;;
  *)
    usage
    exit 1
    ;;
esac
