"""The script for SLURM, with stand-ins for its commands."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import ROOT
from tests.stand_ins import calls, use


@pytest.fixture
def stand_ins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The file of what they were called with."""
    return use(tmp_path, monkeypatch)


SAVES = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: (print("saved", flush=True), sys.exit(75)))
print("on", flush=True)
time.sleep(60)
"""


def slurm(stand_ins: Path, command: list[str], job: str = "7") -> subprocess.Popen[str]:
    return subprocess.Popen(
        [str(ROOT / "launch/slurm.sh"), *command],
        env=os.environ | ({"SLURM_JOB_ID": job} if job else {}),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def test_a_job_ends_as_its_training_does(stand_ins: Path) -> None:
    for status in (0, 1, 3, 137):
        job = slurm(stand_ins, [sys.executable, "-c", f"raise SystemExit({status})"])
        assert job.wait(60) == status
    assert all(call[0] == "srun" for call in calls(stand_ins) if len(call) > 1)
    said = stand_ins.read_text()
    assert said.startswith("srun\n--kill-on-bad-exit=1\nbash\n-c\n")
    assert f"\n{sys.executable}\n-c\nraise SystemExit(0)\n--distributed=auto\n" in said


@pytest.mark.parametrize("status", [75, 130, 143])
def test_an_interrupted_job_is_queued_again(stand_ins: Path, status: int) -> None:
    """As at preemption with a GraceTime, when SLURM signals the steps alone."""
    assert slurm(stand_ins, ["bash", "-c", f"exit {status}"]).wait(60) == 0
    assert calls(stand_ins)[-1] == ["scontrol", "requeue", "7"]


def test_an_error_of_one_process_counts_more_than_what_it_does_to_others(stand_ins: Path) -> None:
    srun = stand_ins.parent / "bin/srun"
    srun.write_text(srun.read_text() + "exit 143\n")  # the highest status
    assert slurm(stand_ins, ["bash", "-c", "exit 1"]).wait(60) == 1
    assert "requeue" not in stand_ins.read_text()


SIGNALS = [
    (signal.SIGUSR1, {}, True, 0),
    (signal.SIGTERM, {}, True, 0),
    (signal.SIGTERM, {"JOB_STATE": "COMPLETING", "PREEMPTED": "2026-01-01T00:00:00"}, True, 0),
    (signal.SIGTERM, {"JOB_STATE": "COMPLETING", "RESTARTS": "1"}, False, 0),  # SLURM has requeued it
    (signal.SIGTERM, {"JOB_STATE": "COMPLETING", "RESTARTS": "1", "SLURM_RESTART_COUNT": "1"}, False, 75),  # scancel
    (signal.SIGTERM, {"JOB_STATE": "CANCELLED"}, False, 75),
    (signal.SIGUSR1, {"REQUEUE": "1"}, True, 75),  # with --no-requeue
]


@pytest.mark.parametrize(("number", "job", "requeues", "status"), SIGNALS)
def test_a_job_is_told_to_stop(
    stand_ins: Path,
    monkeypatch: pytest.MonkeyPatch,
    number: signal.Signals,
    job: dict[str, str],
    requeues: bool,
    status: int,
) -> None:
    """At its time limit, at preemption, by its user."""
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    running = slurm(stand_ins, [sys.executable, "-c", SAVES])
    assert running.stdout.readline() == "on\n"
    running.send_signal(number)
    said, _ = running.communicate(timeout=60)
    assert running.returncode == status, said
    assert "saved" in said
    made = calls(stand_ins)
    assert ["scancel", "--signal=TERM", "7"] in made
    assert made.count(["scontrol", "requeue", "7"]) == requeues


@pytest.mark.parametrize(("command", "job", "said"), [([], "7", "no command"), (["true"], "", "not a SLURM job")])
def test_what_is_no_job_is_one_line(stand_ins: Path, command: list[str], job: str, said: str) -> None:
    done, _ = slurm(stand_ins, command, job).communicate(timeout=60)
    assert done.startswith("error: ")
    assert said in done
    assert not stand_ins.exists()
