"""Several processes, as the hosts of a pod are, train as one does: real ones, over loopback."""

import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import pytest

from bksdm_jax.base import workdir as workdirs
from bksdm_jax.base.distributed import connect
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.exits import FAILED, RESTART
from bksdm_jax.base.processes import ProcessConfig
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.tasks.distill.task import distill
from bksdm_jax.training.config import SampleGridConfig
from tests import tiny
from tests.binaries import metrics, settings
from tests.conftest import QUICK_XLA, ROOT


@pytest.mark.parametrize(
    ("config", "named"),
    [
        (ProcessConfig(processes=2), "none.*--processes"),
        (ProcessConfig("auto", process_id=0), "auto.*--process"),
        (ProcessConfig("here", 2, 0), "'here'"),
        (ProcessConfig("127.0.0.1:1", 0, 0), "processes.* 0"),
        (ProcessConfig("127.0.0.1:1", 2, 2), r"process_id.* 2.*\[0, 1\]"),
        (ProcessConfig("127.0.0.1:1", 2), r"process_id.* -1.*\[0, 1\]"),
    ],
)
def test_bad_settings_are_one_line(config: ProcessConfig, named: str) -> None:
    with pytest.raises(InputError, match=f"^--distributed: .*{named}"):
        connect(config)


def test_one_process_connects_to_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: pytest.fail("there is nothing to join"))
    connect(ProcessConfig())


def test_a_cluster_that_is_not_there_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def initialize(**options: object) -> None:
        raise RuntimeError("DEADLINE_EXCEEDED:\n nobody came")

    monkeypatch.setattr(jax.distributed, "initialize", initialize)
    with pytest.raises(InputError, match=r"^--distributed: .*127.0.0.1:1.*DEADLINE_EXCEEDED: nobody came"):
        connect(ProcessConfig("127.0.0.1:1", 1, 0))


@pytest.mark.parametrize(
    ("tasks", "devices"), [("1(x4)", [*range(8)]), ("1", [*range(8)]), ("8(x4)", None), ("", None)]
)
def test_a_task_that_has_a_node_to_itself_has_all_its_gpus(
    monkeypatch: pytest.MonkeyPatch, tasks: str, devices: list[int] | None
) -> None:
    """What JAX's runtime is told on a node with eight GPUs; None: it finds out by itself."""
    told: dict[str, object] = {}
    monkeypatch.setattr(jax.distributed, "initialize", lambda **options: told.update(options))
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    monkeypatch.setenv("SLURM_GPUS_ON_NODE", "8")
    connect(ProcessConfig("auto"))
    assert told.get("local_device_ids") == devices


def test_a_workdir_that_the_others_do_not_see_is_told(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(workdirs, "_LATE", 0)
    with pytest.raises(InputError, match=f"^{tmp_path}: "):
        workdirs.require_shared(tmp_path)
    (tmp_path / "config.json").write_text("{}")
    workdirs.require_shared(tmp_path)


RUN = {"student": tiny.MICRO_STUDENT, "resolution": 16, "batch_size": 8, "steps": 10}
"""A run of seconds; in float32 and at the reference run's rate, at which rounding doesn't grow."""


def start(
    teacher: Path, data: Path, workdir: Path, count: int, last: tuple[str, ...] = (), timeout: int = 300, **changes: Any
) -> list[subprocess.Popen[str]]:
    """So many processes with two devices each; `last` are flags of the last one only."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    flags = settings(
        "distill.py:v1,runlocal", workdir, teacher=teacher, data=data, **RUN | {"sheets__steps": 0} | changes
    )
    command = [sys.executable, "-m", "launch.train", *flags, f"--distributed={address}", f"--processes={count}"]
    command.append(f"--timeout={timeout}")
    several = os.environ | {"XLA_FLAGS": f"--xla_force_host_platform_device_count=2 {QUICK_XLA}"}
    options: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return [
        subprocess.Popen(
            [*command, f"--process_id={index}", *(last if index == count - 1 else ())], cwd=ROOT, env=several, **options
        )
        for index in range(count)
    ]


def finish(processes: list[subprocess.Popen[str]], status: int = 0) -> list[str]:
    said = [process.communicate(timeout=500)[0] for process in processes]
    assert [process.returncode for process in processes] == [status] * len(processes), "\n".join(said)
    return said


@pytest.fixture(scope="module")
def alone(micro_teacher: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, str]]:
    """Every loss of a run of this process."""
    workdir = tmp_path_factory.mktemp("alone") / "run"
    fixed = {"accumulation": 1, "dtype": "float32", "log_every": 1, "sheets": SampleGridConfig(steps=0)}
    distill(DistillConfig(str(micro_teacher), data=str(photographs), **RUN | fixed), workdir)
    return metrics(workdir)


@pytest.mark.slow
@pytest.mark.parametrize(("count", "fsdp"), [(2, 1), (4, 2)])
def test_losses_are_those_of_one_process(
    alone: list[dict[str, str]], micro_teacher: Path, photographs: Path, tmp_path: Path, count: int, fsdp: int
) -> None:
    grids = 2 if count == 2 else 0
    finish(start(micro_teacher, photographs, tmp_path / "run", count, fsdp=fsdp, sheets__steps=grids))
    found = metrics(tmp_path / "run")
    assert len(found) == len(alone) == 10
    for ours, theirs in zip(found, alone, strict=True):
        for name in (name for name in theirs if "loss" in name or "feature" in name or "norm" in name):
            assert float(ours[name]) == pytest.approx(float(theirs[name]), rel=1e-5), name
    assert (tmp_path / "run" / "model" / "unet").is_dir()
    assert len(list((tmp_path / "run").glob("samples/*.png"))) == bool(grids)


@pytest.mark.slow
def test_what_one_is_told_all_do(micro_teacher: Path, photographs: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    processes = start(micro_teacher, photographs, run, 2, steps=2000, checkpoint_every=0)
    while len(metrics(run)) < 3 and all(process.poll() is None for process in processes):
        time.sleep(0.2)
    os.kill(processes[1].pid, signal.SIGTERM)
    finish(processes, status=RESTART)
    made = len(metrics(run))
    assert (run / "checkpoints" / str(made)).is_dir()
    finish(start(micro_teacher, photographs, run, 2, steps=made + 2, checkpoint_every=0))
    assert [int(row["step"]) for row in metrics(run)] == list(range(1, made + 3))


@pytest.mark.slow
def test_an_image_that_one_cannot_read_saves_the_state_of_all(
    micro_teacher: Path, photographs: Path, tmp_path: Path
) -> None:
    run, copy = tmp_path / "run", tmp_path / "copy"
    shutil.copytree(photographs, copy)
    changes = {"steps": 2000, "checkpoint_every": 0}
    processes = start(micro_teacher, photographs, run, 2, last=(f"--config.data={copy}",), timeout=60, **changes)
    while len(metrics(run)) < 3 and all(process.poll() is None for process in processes):
        time.sleep(0.2)
    for path in copy.glob("*.png"):
        path.write_bytes(path.read_bytes()[:500])
    first, second = finish(processes, status=FAILED)
    (saved,) = [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved >= 3
    for said in (first, second):
        (line,) = [line for line in said.splitlines() if line.startswith("error: ")]
        assert str(copy) in line
        assert f"step {saved}" in line
        assert "Traceback" not in said
    assert "process 1" in first
    finish(start(micro_teacher, photographs, run, 2, steps=saved + 2, checkpoint_every=0))
    assert [int(row["step"]) for row in metrics(run)] == list(range(1, saved + 3))


@pytest.mark.slow
def test_one_that_is_left_alone_in_an_evaluation_saves_the_state(
    micro_teacher: Path, photographs: Path, tmp_path: Path
) -> None:
    """The prompts to draw are so many that the grids take most of the time."""
    run = tmp_path / "run"
    prompts = "(" + "'a cat'," * 64 + ")"
    changes = {"steps": 3, "checkpoint_every": 0, "sheets__steps": 25, "sheets__every": 1, "sheets__prompts": prompts}
    processes = start(micro_teacher, photographs, run, 2, last=(), timeout=60, **changes)
    deadline = time.monotonic() + 400
    while len(metrics(run)) < 1 and time.monotonic() < deadline:
        time.sleep(0.1)
    time.sleep(3)
    processes[1].kill()
    said = processes[0].communicate(timeout=300)[0]
    assert processes[0].returncode == RESTART, said
    assert "process 1" in said.splitlines()[-1]
    (saved,) = [int(path.name) for path in (run / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved == int(metrics(run)[-1]["step"])
