"""The scripts for pods and clusters, with stand-ins for the commands that they call."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
STAND_IN = '#!/usr/bin/env bash\nprintf "%s\\n" "$(basename "$0")" "$@" "" >>"$CALLS"\n'

# Runs its command without the last flag, which is JAX's.
SRUN = """
shift
"${@:1:$#-1}" &
echo $! >"$CALLS.pid"
trap 'kill -KILL $(cat "$CALLS.pid")' TERM
wait $!
"""


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Makes `gcloud` and SLURM's commands write down what they were called with; returns that file.

    `srun` kills its command when it gets a SIGTERM, as SLURM's does; `scancel` hands one to the command.
    """
    (tmp_path / "bin").mkdir()
    for name in ("gcloud", "scontrol"):
        (tmp_path / "bin" / name).write_text(STAND_IN)
        (tmp_path / "bin" / name).chmod(0o755)
    for name, does in (("srun", SRUN), ("scancel", 'kill -TERM "$(cat "$CALLS.pid")"\n')):
        (tmp_path / "bin" / name).write_text(STAND_IN + does)
        (tmp_path / "bin" / name).chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setenv("CALLS", str(tmp_path / "calls"))
    for name in ("ZONE", "PROJECT", "SPOT", "VERSION", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path / "calls"


def pod(*arguments: str, folder: Path = ROOT) -> subprocess.CompletedProcess[str]:
    script = [str(ROOT / "launch/tpu_pod.sh"), *arguments]
    return subprocess.run(script, cwd=folder, capture_output=True, text=True, check=False)


def calls(path: Path) -> list[list[str]]:
    """Each call, as a list of its words."""
    return [call.split("\n") for call in path.read_text().strip("\n").split("\n\n")]


@pytest.mark.parametrize("path", SCRIPTS, ids=lambda path: path.name)
def test_shellcheck_finds_nothing(path: Path) -> None:
    checker = Path(sys.executable).with_name("shellcheck")
    found = subprocess.run([checker, path], capture_output=True, text=True, check=False)
    assert found.returncode == 0, found.stdout
    assert os.access(path, os.X_OK)


def test_a_pod_from_nothing_to_nothing(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PROJECT", "mine")
    monkeypatch.setenv("SPOT", "1")
    for arguments in (["create", "bk", "v4-32"], ["install", "bk"], ["logs", "bk"], ["stop", "bk"], ["delete", "bk"]):
        done = pod(*arguments)
        assert done.returncode == 0, done.stderr
    vm = ["gcloud", "compute", "tpus", "tpu-vm"]
    where = ["--zone=us-central2-b", "--project=mine"]
    create, copy, install, logs, stop, delete = calls(stand_ins)
    options = ["--accelerator-type=v4-32", "--version=tpu-ubuntu2204-base", "--spot"]
    assert create == [*vm, "create", "bk", *options, *where]
    assert copy[:5] == [*vm, "scp"]
    assert copy[6:] == ["bk:bksdm_jax.tar.gz", "--worker=all", *where]
    assert not Path(copy[5]).exists()
    assert install[:7] == [*vm, "ssh", "bk", "--worker=all"]
    assert "make install ACCELERATOR=tpu" in install[7]
    assert logs[6] == "--worker=0"
    assert stop[6] == "--worker=all"
    assert delete == [*vm, "delete", "bk", *where]


def test_a_command_runs_on_and_is_stopped(stand_ins: Path, tmp_path: Path) -> None:
    program = tmp_path / "it is.py"
    program.write_text("import sys, time\nprint(sys.argv[1], flush=True)\ntime.sleep(60)\n")
    pod("run", "bk", sys.executable, str(program), 'a "quoted" $HOME caption')
    pod("stop", "bk")
    run, stop = (call[7].removeprefix("--command=") for call in calls(stand_ins))
    (tmp_path / "bksdm_jax").mkdir()
    subprocess.run(["bash", "-c", run], cwd=tmp_path, check=True)
    said, number = tmp_path / "bksdm_jax/run.log", int((tmp_path / "bksdm_jax/run.pid").read_text())
    deadline = time.monotonic() + 30
    while time.monotonic() < deadline and not (said.exists() and said.read_text()):
        time.sleep(0.05)
    assert said.read_text() == 'a "quoted" $HOME caption\n'
    os.kill(number, 0)
    subprocess.run(["bash", "-c", stop], cwd=tmp_path, check=True)
    while time.monotonic() < deadline and Path(f"/proc/{number}").exists():
        if "State:\tZ" in Path(f"/proc/{number}/status").read_text():
            break
        time.sleep(0.05)
    assert time.monotonic() < deadline


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["create", "bk"], "error: create NAME TYPE"),
        (["create", "bk", "a100"], "error: TYPE: a100; expected v4-32"),
        (["create", "-rf", "v4-32"], "error: NAME: -rf; "),
        (["run", "bk"], "error: run NAME COMMAND"),
        (["launch", "bk"], ""),
        ([], ""),
    ],
)
def test_mistakes_call_nothing(stand_ins: Path, arguments: list[str], said: str) -> None:
    done = pod(*arguments)
    assert done.returncode == 1
    assert said in done.stderr if said else "launch/tpu_pod.sh create  NAME TYPE" in done.stdout
    assert not stand_ins.exists()


SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(1)))
print("on", flush=True)
time.sleep(60)
"""


def slurm(stand_ins: Path, command: list[str], job: str = "7") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(ROOT / "launch/slurm.sh"), *command],
        cwd=stand_ins.parent,
        env=os.environ | ({"SLURM_JOB_ID": job} if job else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_job_ends_as_its_training_does(stand_ins: Path) -> None:
    for status in (0, 3):
        job = slurm(stand_ins, [sys.executable, "-c", f"raise SystemExit({status})"])
        assert job.wait(60) == status
    assert calls(stand_ins)[0] == [
        "srun",
        "--kill-on-bad-exit=1",
        sys.executable,
        "-c",
        "raise SystemExit(0)",
        "--distributed=auto",
    ]


def test_a_job_whose_time_is_over_is_queued_again(stand_ins: Path) -> None:
    job = slurm(stand_ins, [sys.executable, "-c", SAVES])
    assert job.stdout.readline() == "on\n"
    job.send_signal(signal.SIGUSR1)
    said, _ = job.communicate(timeout=60)
    assert job.returncode == 0
    assert "saved" in said
    assert calls(stand_ins)[-2:] == [["scancel", "--signal=TERM", "7"], ["scontrol", "requeue", "7"]]


@pytest.mark.parametrize(("command", "job", "said"), [([], "7", "no command"), (["true"], "", "not a SLURM job")])
def test_what_is_no_job_is_one_line(stand_ins: Path, command: list[str], job: str, said: str) -> None:
    done, _ = slurm(stand_ins, command, job).communicate(timeout=60)
    assert done.startswith("error: ")
    assert said in done
    assert not stand_ins.exists()
