"""Stand-ins for `gcloud` and SLURM's commands, which write down what they were called with."""

import os
from pathlib import Path

import pytest

WRITES_DOWN = '#!/usr/bin/env bash\nprintf "%s\\n" "$(basename "$0")" "$@" "" >>"$CALLS"\n'

# A zone with one slice of two workers, folders here. `state` has the states that it goes through, `refused` how many
# calls of ssh fail before the next one succeeds; with `vanishes`, the slice does when a command is started.
# With PLAIN=1 `tpu-vm create` makes such a slice too.
GCLOUD = """
cloud=$CALLS.cloud
mkdir -p "$cloud"
case "$3 $4" in
  "queued-resources create")
    printf '%s\\n' ${STATES:-ACTIVE} >"$cloud/state"
    mkdir -p "$cloud/w0" "$cloud/w1"
    ;;
  "queued-resources describe")
    [ -e "$cloud/state" ] || { echo "ERROR: NOT_FOUND: Resource '$5' was not found" >&2 && exit 1; }
    head -n 1 "$cloud/state"
    [ "$(wc -l <"$cloud/state")" = 1 ] || sed -i 1d "$cloud/state"
    ;;
  "queued-resources delete")
    kill $(cat "$cloud"/w*/bksdm_jax/run.pid) 2>/dev/null
    rm -rf "$cloud"
    ;;
  "tpu-vm create") [ -z "${PLAIN:-}" ] || { echo ACTIVE >"$cloud/plain" && mkdir -p "$cloud/w0" "$cloud/w1"; } ;;
  "tpu-vm delete") rm -rf "$cloud" ;;
  "tpu-vm describe")
    [ -e "$cloud/state" ] || [ -e "$cloud/plain" ] ||
      { echo "ERROR: NOT_FOUND: Resource '$5' was not found" >&2 && exit 1; }
    echo "${NODE:-READY}"
    ;;
  "tpu-vm ssh")
    state=$(cat "$cloud/state" "$cloud/plain" 2>/dev/null | head -n 1)
    [ -n "$state" ] || exit 0
    left=$(cat "$CALLS.refused" 2>/dev/null || echo 0)
    [ "$left" = 0 ] || { echo $((left - 1)) >"$CALLS.refused" && exit 255; }
    [ "$state" = ACTIVE ] || exit 255
    case $7,$(ls "$CALLS.vanishes" 2>/dev/null) in
      *run.new*,?*) rm -r "$cloud" "$CALLS.vanishes" && exit 255 ;;
    esac
    for worker in "$cloud"/w*; do
      case $7 in
        *"make install"*) mkdir -p "$worker/bksdm_jax" ;;
        *) (cd "$worker" && bash -c "${7#--command=}") || failed=$? ;;
      esac
    done
    exit "${failed:-0}"
    ;;
esac
exit 0
"""

# Runs its command as one process, and kills it when it gets a SIGTERM, as SLURM's does.
SRUN = """
shift
"$@" &
echo $! >"$CALLS.pid"
trap 'kill -KILL $(cat "$CALLS.pid")' TERM
wait $!
"""

# Reaches the shell around the command, and the command.
SCANCEL = 'pkill -TERM -P "$(cat "$CALLS.pid")"\nkill -TERM "$(cat "$CALLS.pid")"\n'

SCONTROL = """
case $1 in
  show) echo "   JobState=${JOB_STATE:-RUNNING} Reason=None Restarts=${RESTARTS:-0} PreemptTime=${PREEMPTED:-None}" ;;
  requeue) exit "${REQUEUE:-0}" ;;
esac
"""


VARIABLES = ("ZONE", "PROJECT", "SPOT", "QUEUED", "VALID_UNTIL", "VERSION", "DELETE", "SLURM_JOB_ID")


def use(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Puts them first, and makes `folder` the working folder; returns the file of what they were called with."""
    (folder / "bin").mkdir()
    for name, does in (("gcloud", GCLOUD), ("scontrol", SCONTROL), ("srun", SRUN), ("scancel", SCANCEL)):
        (folder / "bin" / name).write_text(WRITES_DOWN + does)
        (folder / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(folder / "calls"))
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    for name in ("POLL", "PAUSE"):
        monkeypatch.setenv(name, "0.02")
    monkeypatch.chdir(folder)
    return folder / "calls"


def calls(path: Path) -> list[list[str]]:
    """Each call, as a list of its words."""
    return [call.split("\n") for call in path.read_text().strip("\n").split("\n\n")]
