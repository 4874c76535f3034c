#!/usr/bin/env bash
# Creates, uses and deletes a TPU pod slice on Google Cloud. Needs `gcloud`, logged in.
#
#   launch/tpu_pod.sh create  NAME TYPE     TYPE: v4-32, v5litepod-16, v5p-32, v6e-16, ...
#   launch/tpu_pod.sh state   NAME          ACTIVE, or what a queued slice waits for
#   launch/tpu_pod.sh install NAME          on every worker: this commit, with JAX for TPUs
#   launch/tpu_pod.sh run     NAME COMMAND  on every worker, in the background; doesn't need this machine to stay on
#   launch/tpu_pod.sh logs    NAME          follows the log of the first worker
#   launch/tpu_pod.sh stop    NAME          SIGTERM to every worker: a training saves its state and ends
#   launch/tpu_pod.sh delete  NAME          asks first
#   launch/tpu_pod.sh keep    NAME TYPE COMMAND  all of it, until COMMAND has ended with 0 on every worker
#
# For example
#   launch/tpu_pod.sh create bk v4-32
#   launch/tpu_pod.sh install bk
#   launch/tpu_pod.sh run bk python -m launch.train --config=configs/distill.py:v1,bk_base \
#     --config.teacher=/mnt/bk/teacher --config.data=gs://bucket/latents --workdir=/mnt/bk/base --distributed=auto
#
# `keep` queues for a slice where there is none, installs, runs COMMAND and watches it, on this machine, which must stay
# on: start it in tmux, or with nohup. It deletes a slice that was preempted and creates it again, and starts COMMAND
# again when it ended with 75, 130, 137 or 143, but gives up after 5 such starts in a row that lasted less than 10
# minutes. On any other status but 0 it prints the end of that worker's log and ends with 1. The slice stays, and costs,
# until `delete`; DELETE=1 deletes it once COMMAND has ended with 0. Ctrl-C ends the watching alone, and the same `keep`
# goes on with it; so press it before `stop` or `delete`.
#
# All workers must see the workdir of a training: use Filestore, or a bucket mounted by gcsfuse. A slice created again
# has empty disks: the mount belongs into COMMAND or the project's startup script. Without a shared folder, the
# checkpoints can be in a bucket: --config.checkpoints=gs://bucket/run holds all that a training needs to go on.
#
# Environment variables: ZONE (default us-central2-b), PROJECT (default: gcloud's), VERSION (runtime; default by TYPE).
#   SPOT=1          a preemptible slice; without `keep`, `delete`, `create`, `install` and the same `run` go on after it
#   QUEUED=1        `create` only puts the request into the queue, as `keep` does; `state` says when it is ACTIVE
#   VALID_UNTIL=6h  gives up a queued request that isn't served by then
#   POLL=60         seconds between two looks at the slice; PAUSE=30: before something that failed is tried again
#   SHORT=600       seconds below which a run counts as one of those 5
#   GRACE=600       seconds after which workers are killed that still run when others were interrupted
#   MUTE=1800       seconds after which a slice is deleted and requested again that is ACTIVE and doesn't answer
set -euo pipefail

ZONE=${ZONE:-us-central2-b}
POLL=${POLL:-60}
PAUSE=${PAUSE:-30}
SHORT=${SHORT:-600}
GRACE=${GRACE:-600}
MUTE=${MUTE:-1800}
FOLDER=bksdm_jax

usage() {
  sed -n '2,/^set /{/^set /d;s/^# \{0,1\}//;p;}' "$0"
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

queued() {
  local verb=$1
  shift
  gcloud compute tpus queued-resources "$verb" "$@" --zone="$ZONE" ${PROJECT:+--project="$PROJECT"}
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

queue() { # TYPE RUNTIME
  queued create "$NAME" --node-id="$NAME" --accelerator-type="$1" --runtime-version="$2" \
    ${SPOT:+--spot} ${VALID_UNTIL:+--valid-until-duration="$VALID_UNTIL"}
}

described() { # tpu|queued FORMAT: the field; none: there is no such thing; unknown: gcloud has failed
  local said
  if said=$("$1" describe "$NAME" --format="value($2)" 2>"$temporary/error"); then
    echo "${said:-unknown}"
  elif grep -qi 'not_found\|not found' "$temporary/error"; then
    echo none
  else
    echo unknown
  fi
}

state() { # of the slice; PREEMPTED also where the queue doesn't know it yet, or the slice was created without one
  local request slice
  request=$(described queued state.state)
  if [ "$request" = ACTIVE ] || [ "$request" = none ]; then
    slice=$(described tpu state)
    case $request$slice in
      ACTIVEnone | *PREEMPTED | *TERMINATED | *STOPPED) request=PREEMPTED ;;
      noneREADY) request=ACTIVE ;;
      none*) request=$slice ;;
    esac
  fi
  echo "$request"
}

remove() { # the slice, with its request if it has one
  case $(described queued state.state) in
    none) tpu delete "$NAME" "$@" ;;
    unknown) cat "$temporary/error" >&2 && return 1 ;;
    *) queued delete "$NAME" --force "$@" ;;
  esac
}

install() {
  git archive --format=tar.gz --prefix="$FOLDER/" HEAD >"$temporary/$FOLDER.tar.gz"
  tpu scp "$temporary/$FOLDER.tar.gz" "$NAME:$FOLDER.tar.gz" --worker=all || return
  # The runtimes have Python 3.10.
  on_workers all "tar -xzf $FOLDER.tar.gz && cd $FOLDER && sudo apt-get -qq update && \
sudo apt-get -qq install -y make python3.11-venv && make install ACCELERATOR=tpu PYTHON=python3.11"
}

can_install() {
  [ -f pyproject.toml ] || fail "pyproject.toml: not found; run from the folder that contains it"
  [ -z "$(git status --porcelain)" ] || echo "warning: uncommitted changes aren't installed" >&2
}

# On a worker, in $FOLDER: run.command is what runs, run.pid its process, run.shell the shell that waits for it and
# leaves its exit status in run.status.
# shellcheck disable=SC2016
ALIVE='[ ! -e run.status ] && kill -0 "$(cat run.shell 2>/dev/null)" 2>/dev/null'

start() { # COMMAND: on every worker that doesn't run it already
  local command quoted
  printf -v command '%q ' "$@"
  printf -v quoted '%q' "$command"
  on_workers all "cd $FOLDER || exit; if $ALIVE; then [ \"\$(cat run.command)\" = $quoted ] && exit; \
echo 'error: another command is running; stop it first' >&2; exit 1; fi; \
rm -f run.pid run.status; printf '%s\\n' $quoted >run.command; \
(trap '' HUP; export PATH=\$PWD/.venv/bin:\$PATH; $command >>run.log 2>&1 & echo \$! >run.pid; \
wait \$!; echo \$? >run.new; mv run.new run.status) >/dev/null 2>&1 </dev/null & echo \$! >run.shell; \
for _ in \$(seq 100); do [ -s run.pid ] && exit; sleep 0.1; done; exit 1"
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
temporary=$(mktemp -d)
trap 'rm -rf "$temporary"' EXIT
# shellcheck disable=SC1091
source "$(dirname "$0")/tpu_keep.sh"

case $VERB in
  create)
    [ $# -eq 1 ] || fail "create NAME TYPE"
    runtime=${VERSION:-$(version_of "$1")}
    if [ -n "${QUEUED:-}" ]; then
      queue "$1" "$runtime"
    else
      tpu create "$NAME" --accelerator-type="$1" --version="$runtime" ${SPOT:+--spot}
    fi
    ;;
  state)
    state
    ;;
  install)
    can_install
    install
    ;;
  run)
    [ $# -ge 1 ] || fail "run NAME COMMAND"
    start "$@"
    ;;
  logs)
    on_workers 0 "tail -n 50 -F $FOLDER/run.log"
    ;;
  stop)
    on_workers all "kill -TERM \$(cat $FOLDER/run.pid)"
    ;;
  delete)
    remove "$@"
    ;;
  keep)
    [ $# -ge 2 ] || fail "keep NAME TYPE COMMAND"
    can_install
    runtime=${VERSION:-$(version_of "$1")}
    keep "$1" "$runtime" "${@:2}"
    ;;
  *)
    usage
    exit 1
    ;;
esac
