"""The script for pods, with a stand-in for `gcloud`."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.stand_ins import calls, use

SCRIPTS = sorted((ROOT / "launch").glob("*.sh"))
VM = ["gcloud", "compute", "tpus", "tpu-vm"]
QUEUE = ["gcloud", "compute", "tpus", "queued-resources"]


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository as working folder; returns the file of what the stand-ins were called with."""
    calls = use(tmp_path, monkeypatch)
    Path("pyproject.toml").touch()
    git = ["git", "-c", "user.name=it", "-c", "user.email=it@localhost"]
    for words in (["init", "--quiet"], ["add", "pyproject.toml"], ["commit", "--quiet", "--message=first"]):
        subprocess.run([*git, *words], check=True)
    return calls


def pod(*arguments: str) -> subprocess.CompletedProcess[str]:
    """In the folder of the test, a repository."""
    return subprocess.run([ROOT / "launch/tpu_pod.sh", *arguments], capture_output=True, text=True, check=False)


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
    where = ["--zone=us-central2-b", "--project=mine"]
    create, copy, install, logs, stop, describe, delete = calls(stand_ins)
    options = ["--accelerator-type=v4-32", "--version=tpu-ubuntu2204-base", "--spot"]
    assert create == [*VM, "create", "bk", *options, *where]
    assert copy[:5] == [*VM, "scp"]
    assert copy[6:] == ["bk:bksdm_jax.tar.gz", "--worker=all", *where]
    assert not Path(copy[5]).exists()
    assert install[:7] == [*VM, "ssh", "bk", "--worker=all"]
    assert "make install ACCELERATOR=tpu" in install[7]
    assert logs[6] == "--worker=0"
    assert stop[6] == "--worker=all"
    assert describe[3:6] == ["queued-resources", "describe", "bk"]
    assert delete == [*VM, "delete", "bk", *where]


def test_a_slice_is_queued_for(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("QUEUED", "1"), ("SPOT", "1"), ("VALID_UNTIL", "6h")):
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("STATES", "WAITING_FOR_RESOURCES PROVISIONING")
    assert pod("create", "bk", "v5litepod-16").returncode == 0
    assert pod("state", "bk").stdout == "WAITING_FOR_RESOURCES\n"
    assert pod("delete", "bk").returncode == 0
    made, *_, delete = calls(stand_ins)
    options = ["--node-id=bk", "--accelerator-type=v5litepod-16", "--runtime-version=v2-alpha-tpuv5-lite"]
    assert made == [*QUEUE, "create", "bk", *options, "--spot", "--valid-until-duration=6h", "--zone=us-central2-b"]
    assert delete == [*QUEUE, "delete", "bk", "--force", "--zone=us-central2-b"]
    assert pod("state", "bk").stdout == "none\n"


def keep(program: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Keeps a program of Bash running."""
    return pod("keep", "bk", "v4-32", "bash", "-c", program, "it", *arguments)


def verbs(path: Path) -> list[str]:
    """What was done to the slice, but for looking at it."""
    said = {"apt-get": "install", "run.new": "start", "kill -KILL": "kill"}
    done = []
    for call in calls(path):
        if call[4] in ("create", "delete"):
            done.append(call[4])
        done += [verb for text, verb in said.items() if call[4] == "ssh" and text in call[7]]
    return done


TWICE = """
count=$(cat "$CALLS.count" 2>/dev/null || echo 0)
case $PWD in */w0/*) echo $((count + 1)) >"$CALLS.count" ;; esac
[ "$count" -lt 2 ] || exit 0
"""


def test_what_is_kept_ends_with_its_command(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = keep('echo "$1"; sleep 0.2', 'a "quoted" $HOME caption')
    assert done.returncode == 0, done.stderr
    assert verbs(stand_ins) == ["create", "install", "start"]
    assert done.stdout.count("running") == 1
    assert "still there" in done.stdout
    logs = [path.read_text() for path in sorted(Path(f"{stand_ins}.cloud").glob("w*/bksdm_jax/run.log"))]
    assert logs == ['a "quoted" $HOME caption\n'] * 2
    monkeypatch.setenv("DELETE", "1")
    assert keep("true").returncode == 0
    assert verbs(stand_ins)[3:] == ["install", "start", "delete"]


@pytest.mark.parametrize("how", ["suspended", "node", "gone"])
def test_a_preempted_slice_comes_back(stand_ins: Path, how: str) -> None:
    what = {"suspended": 'echo SUSPENDED >"$CALLS.cloud/state"', "gone": 'rm -r "$CALLS.cloud"'}
    if how == "node":  # ssh fails before the queue knows it
        gcloud = stand_ins.parent / "bin/gcloud"
        gcloud.write_text(gcloud.read_text().replace("${NODE:-READY}", '$(cat "$CALLS.cloud/node" || echo READY)'))
        what["node"] = 'echo PREEMPTED >"$CALLS.cloud/node"; echo 99 >"$CALLS.refused"'
        gcloud.write_text(gcloud.read_text().replace('rm -rf "$cloud"', 'rm -rf "$cloud" "$CALLS.refused"'))
    preempted = f"""
        [ -e "$CALLS.once" ] && exit 0
        case $PWD in */w1/*)
            until [ "$(grep -c status=los[t] "$CALLS")" -ge 2 ]; do sleep 0.02; done
            touch "$CALLS.once"; {what[how]} ;; esac
        sleep 3"""
    done = keep(preempted)
    assert done.returncode == 0, done.stderr
    again = ["create", "install", "start"]
    assert verbs(stand_ins) == [*again, *(["delete"] * (how != "gone")), *again]


def test_a_slice_that_was_not_queued_for_is_kept_too(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PLAIN", "1")
    assert pod("create", "bk", "v4-32").returncode == 0
    assert pod("state", "bk").stdout == "ACTIVE\n"
    done = keep("true")
    assert done.returncode == 0, done.stderr
    assert verbs(stand_ins) == ["create", "install", "start"]


def test_a_slice_that_does_not_answer_is_replaced(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MUTE", "0")
    done = keep('[ -e "$CALLS.once" ] && exit 0; touch "$CALLS.once"; echo 1 >"$CALLS.refused"; sleep 3')
    assert done.returncode == 0, done.stderr
    assert "hasn't answered" in done.stdout
    assert verbs(stand_ins) == ["create", "install", "start", "delete", "create", "install", "start"]


def test_a_slice_that_vanishes_before_the_start_comes_back(stand_ins: Path) -> None:
    Path(f"{stand_ins}.vanishes").touch()
    done = keep("true")
    assert done.returncode == 0, done.stderr
    assert verbs(stand_ins) == ["create", "install", "start"] * 2


@pytest.mark.parametrize("status", [75, 130, 137, 143])
def test_an_interrupted_command_is_started_again(stand_ins: Path, status: int) -> None:
    done = keep(f"{TWICE} exit {status}")
    assert done.returncode == 0, done.stderr
    assert verbs(stand_ins) == ["create", "install", "start", "start", "start"]


def test_workers_that_run_on_alone_are_killed(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GRACE", "0")
    done = keep(f"{TWICE} case $PWD in */w0/*) exit 75 ;; *) exec sleep 60 ;; esac")
    assert done.returncode == 0, done.stderr
    assert "kill" in verbs(stand_ins)


def test_it_gives_up_on_what_ends_at_once(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done = keep("exit 75")
    assert done.returncode == 1
    assert "6 times in a row" in done.stderr
    assert verbs(stand_ins).count("start") == 6
    monkeypatch.setenv("SHORT", "0")
    count = TWICE.replace("-lt 2", "-lt 8")
    assert keep(f"{count} exit 75").returncode == 0


def test_a_failed_command_ends_it(stand_ins: Path) -> None:
    done = keep("case $PWD in */w1/*) echo the reason; exit 1 ;; *) sleep 3 ;; esac")
    assert done.returncode == 1
    assert "the reason" in done.stderr
    assert " 1 running " in done.stderr
    assert verbs(stand_ins) == ["create", "install", "start"]


def test_ssh_may_fail_for_a_while(stand_ins: Path) -> None:
    Path(f"{stand_ins}.refused").write_text("3")
    program = 'case $PWD in */w0/*) echo 3 >"$CALLS.refused" ;; esac; sleep 0.2'
    done = keep(program)
    assert done.returncode == 0, done.stderr
    assert "connecting failed" in done.stdout
    assert "doesn't answer" in done.stdout
    Path(f"{stand_ins}.refused").write_text("99")
    done = keep(program)
    assert done.returncode == 1
    assert "failed 5 times" in done.stderr
    assert "delete" not in verbs(stand_ins)


def test_a_request_that_is_not_served_ends_it(stand_ins: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("STATES", "WAITING_FOR_RESOURCES WAITING_FOR_RESOURCES FAILED")
    monkeypatch.setenv("VALID_UNTIL", "6h")
    done = keep("true")
    assert done.returncode == 1
    assert "within 6h" in done.stderr
    assert done.stdout.count("WAITING_FOR_RESOURCES") == 1
    assert verbs(stand_ins) == ["create", "delete"]


def test_ctrl_c_leaves_the_run_alone_and_it_is_watched_again(stand_ins: Path) -> None:
    command = ["bash", "-c", 'until [ -e "$CALLS.end" ]; do sleep 0.05; done']
    script = [str(ROOT / "launch/tpu_pod.sh"), "keep", "bk", "v4-32", *command]
    first = subprocess.Popen(script, stdout=subprocess.PIPE, text=True)
    assert any(line.endswith(": running\n") for line in first.stdout)
    first.send_signal(signal.SIGINT)
    assert "left alone" in first.communicate(timeout=30)[0]
    assert first.returncode == 130
    other = pod("keep", "bk", "v4-32", "true")
    assert other.returncode == 1
    assert "another command" in other.stderr
    Path(f"{stand_ins}.end").touch()
    assert pod(*script[1:]).returncode == 0
    assert verbs(stand_ins)[:3] == ["create", "install", "start"]


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
        (["keep", "bk", "v4-32"], "error: keep NAME TYPE COMMAND"),
        (["keep", "bk", "a100", "true"], "error: TYPE: a100; expected v4-32"),
        (["launch", "bk"], ""),
        ([], ""),
    ],
)
def test_mistakes_call_nothing(stand_ins: Path, arguments: list[str], said: str) -> None:
    done = pod(*arguments)
    assert done.returncode == 1
    assert said in done.stderr if said else "launch/tpu_pod.sh create  NAME TYPE" in done.stdout
    assert not stand_ins.exists()
