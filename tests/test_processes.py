"""Several processes, as the hosts of a pod are, train as one does: real ones, over loopback."""

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

import jax
import pytest

from bksdm_jax.base import workdir as workdirs
from bksdm_jax.base.distributed import ProcessConfig, connect
from bksdm_jax.base.errors import InputError
from bksdm_jax.training import loop
from tests import tiny
from tests.conftest import QUICK_XLA, ROOT
from tests.test_binaries import command, environment, rows, succeed


@pytest.mark.parametrize(
    ("config", "said"),
    [
        (ProcessConfig(processes=2), "--distributed: none, which has no --processes"),
        (ProcessConfig("auto", process_id=0), "--distributed: auto, which has no --processes"),
        (ProcessConfig("here", 2, 0), "expected none, auto, or HOST:PORT"),
        (ProcessConfig("127.0.0.1:1", 0, 0), "processes is 0"),
        (ProcessConfig("127.0.0.1:1", 2, 2), r"process_id is 2; expected a whole number in \[0, 1\]"),
        (ProcessConfig("127.0.0.1:1", 2), r"process_id is -1; expected a whole number in \[0, 1\]"),
    ],
)
def test_bad_settings_are_one_line(config: ProcessConfig, said: str) -> None:
    with pytest.raises(InputError, match=said):
        connect(config)


def test_one_process_connects_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: pytest.fail("there is nothing to join"))
    connect(ProcessConfig())


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialize(**options: object) -> None:
        raise RuntimeError("DEADLINE_EXCEEDED:\n nobody came")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match=r"can't be joined at 127.0.0.1:1 \(DEADLINE_EXCEEDED: nobody came\)"):
        connect(ProcessConfig("127.0.0.1:1", 2, 0))


@pytest.mark.parametrize(
    ("tasks", "devices"), [("1(x4)", {"local_device_ids": list(range(8))}), ("1", {"local_device_ids": list(range(8))})]
)
def test_a_task_that_has_a_node_to_itself_has_all_its_gpus(
    monkeypatch: pytest.MonkeyPatch, tasks: str, devices: dict[str, list[int]]
) -> None:
    assert joined(monkeypatch, tasks) == devices


@pytest.mark.parametrize("tasks", ["8(x4)", ""])
def test_tasks_that_share_a_node_are_left_to_jax(monkeypatch: pytest.MonkeyPatch, tasks: str) -> None:
    assert joined(monkeypatch, tasks) == {}


def joined(monkeypatch: pytest.MonkeyPatch, tasks: str) -> dict[str, object]:
    """What JAX's runtime is told of devices on a node with eight GPUs, with so many tasks a node."""
    told: dict[str, object] = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: told.update(options))
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    connect(ProcessConfig("auto"))
    return {name: value for name, value in told.items() if name == "local_device_ids"}


@pytest.mark.parametrize(("seconds", "asked"), [(0.5, [1, 5, 9]), (11.0, list(range(1, 11))), (0.001, [1])])
def test_processes_ask_each_other_by_the_clock(
    monkeypatch: pytest.MonkeyPatch, seconds: float, asked: list[int]
) -> None:
    now, questions = [0.0], []
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    monkeypatch.setattr(loop, "largest", lambda *values: questions.append(step) or values)
    stop = loop.Stop(0)
    for step in range(1, 11):
        now[0] += seconds
        assert stop.after(step, wanted=False) is False
    assert questions == asked


def test_one_process_stops_at_once() -> None:
    assert loop.Stop(0).after(1, wanted=True) is True


def test_a_workdir_that_the_others_do_not_see_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workdirs, "_LATE", 0)
    with pytest.raises(InputError, match="choose a workdir that all processes see"):
        workdirs.require_shared(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    workdirs.require_shared(tmp_path)


def training(teacher: Path, data: Path, workdir: Path, **settings: object) -> list[str]:
    """A run of seconds, whose losses are those of the reference run's rate, in float32."""
    fixed = {"student": tiny.MICRO_STUDENT, "resolution": 16, "batch_size": 8, "steps": 20, "sheets__steps": 0}
    return command("train", "distill.py:v1,runlocal", workdir, teacher=teacher, data=data, **fixed | settings)


def start(arguments: list[str], count: int) -> list[subprocess.Popen[str]]:
    """So many processes with two devices each."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{free.getsockname()[1]}"
    several = environment() | {"XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {QUICK_XLA}"}
    flags = [[f"--distributed={place}", f"--processes={count}", f"--process_id={index}"] for index in range(count)]
    return [
        subprocess.Popen(
            [*arguments, *own],
            cwd=ROOT,
            env=several,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for own in flags
    ]


def finish(processes: list[subprocess.Popen[str]], status: int = 0) -> list[str]:
    said = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), "\n".join(said)
    return said


@pytest.fixture(scope="module")
def alone(micro_teacher: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Every loss of a run of one process with one device."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    succeed(training(micro_teacher, photographs, workdir))
    return rows(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "fsdp"), [(2, 1), (4, 2)])
def test_losses_are_those_of_one_process(
    alone: list[dict[str, str]], micro_teacher: Path, photographs: Path, tmp_path: Path, count: int, fsdp: int
) -> None:
    sheets = 2 if count == 2 else 0
    arguments = training(micro_teacher, photographs, tmp_path / "run", fsdp=fsdp, sheets__steps=sheets)
    finish(start(arguments, count))
    found = rows(tmp_path / "run")
    assert len(found) == len(alone) == 20
    for ours, theirs in zip(found, alone, strict=True):
        for name in (name for name in theirs if "loss" in name or "feature" in name or "norm" in name):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-5), name
    assert (tmp_path / "run" / "model" / "unet").is_dir()
    assert len(list((tmp_path / "run").glob("samples/*.png"))) == bool(sheets)


@pytest.mark.slow
def test_what_one_is_told_all_do(micro_teacher: Path, photographs: Path, tmp_path: Path) -> None:
    arguments = training(micro_teacher, photographs, tmp_path / "run", steps=2000, checkpoint_every=0)
    processes = start(arguments, 2)
    while len(rows(tmp_path / "run")) < 3 and all(process.poll() is None for process in processes):
        time.sleep(0.2)
    os.kill(processes[1].pid, signal.SIGTERM)
    assert all("interrupted; the same command continues" in said for said in finish(processes, status=1))
    made = len(rows(tmp_path / "run"))
    assert (tmp_path / "run" / "checkpoints" / str(made)).is_dir()
    last = training(micro_teacher, photographs, tmp_path / "run", steps=made + 2, checkpoint_every=0)
    finish(start(last, 2))
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == list(range(1, made + 3))
