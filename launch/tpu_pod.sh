#!/usr/bin/env bash
# A TPU pod slice on Google Cloud, from nothing to nothing. `gcloud` must be there and logged in.
#
#   launch/tpu_pod.sh create  NAME TYPE     TYPE: v4-32, v5litepod-16, v5p-32, v6e-16, ...
#   launch/tpu_pod.sh install NAME          what is committed here, with JAX for TPUs, on every worker
#   launch/tpu_pod.sh run     NAME COMMAND  on every worker, in the background; goes on when this machine doesn't
#   launch/tpu_pod.sh logs    NAME          of the first worker, as they come
#   launch/tpu_pod.sh stop    NAME          SIGTERM to every worker: a training saves its state and ends
#   launch/tpu_pod.sh delete  NAME          asks first
#
# For example
#   launch/tpu_pod.sh create bk v4-32
#   launch/tpu_pod.sh install bk
#   launch/tpu_pod.sh run bk python -m launch.train --config=configs/distill.py:v1,bk_base \
#     --config.teacher=/mnt/bk/teacher --config.data=gs://bucket/latents --workdir=/mnt/bk/base --distributed=auto
#
# A training's workdir must be a folder that all workers see: Filestore, or a bucket mounted by gcsfuse.
# ZONE (default us-central2-b), PROJECT (default: gcloud's), VERSION (of the runtime; default by TYPE) are environment
# variables. SPOT=1 asks for a machine that may be taken back: then `delete`, `create`, `install` and the same `run`
# again, which continues from the last checkpoint.
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
[[ $NAME =~ ^[a-z]([a-z0-9-]{0,61}[a-z0-9])?$ ]] || fail "NAME: $NAME; expected small letters, digits and dashes"
command -v gcloud >/dev/null || fail "gcloud isn't there; https://cloud.google.com/sdk has it"

case $VERB in
  create)
    [ $# -eq 1 ] || fail "create NAME TYPE"
    runtime=${VERSION:-$(version_of "$1")}
    tpu create "$NAME" --accelerator-type="$1" --version="$runtime" ${SPOT:+--spot}
    ;;
  install)
    [ -f pyproject.toml ] || fail "pyproject.toml: not here; run from the folder that has it"
    [ -z "$(git status --porcelain)" ] || echo "warning: what isn't committed stays behind" >&2
    archive=$(mktemp --suffix=.tar.gz)
    trap 'rm -f "$archive"' EXIT
    git archive --format=tar.gz --prefix="$FOLDER/" HEAD >"$archive"
    tpu scp "$archive" "$NAME:$FOLDER.tar.gz" --worker=all
    # The runtimes' own Python is 3.10.
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
