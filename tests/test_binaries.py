"""The binaries as a user starts them: whole runs on photographs, a kill and a restart, careless mistakes."""

import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from flax import serialization
from PIL import Image
from safetensors.numpy import load_file

from tests import tiny
from tests.conftest import ROOT


def command(verb: str, config: str, workdir: Path, **settings: object) -> list[str]:
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", f"launch.{verb}", f"--config=configs/{config}", *flags, f"--workdir={workdir}"]


def environment() -> dict[str, str]:
    """One CPU device, and no hub; what runs for hundreds of updates is compiled with care."""
    return os.environ | {"XLA_FLAGS": "", "HF_HUB_OFFLINE": "1", "PYTHONUNBUFFERED": "1"}


def run(arguments: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        arguments, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600, check=False
    )


def succeed(arguments: Sequence[str]) -> str:
    result = run(arguments)
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


def fail(arguments: Sequence[str]) -> str:
    """The one line that the program says for itself on its way out."""
    result = run(arguments)
    assert result.returncode == 1, result.stdout + result.stderr
    assert "Traceback" not in result.stderr
    lines = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, result.stderr
    return lines[0]


def micro_run(teacher: Path, data: Path, workdir: Path, **settings: object) -> list[str]:
    """A run of seconds at two stages and 16 pixels; all of them share one compiled update."""
    return command(
        "train",
        "distill.py:v1,runlocal",
        workdir,
        teacher=teacher,
        data=data,
        student=tiny.MICRO_STUDENT,
        resolution=16,
        batch_size=2,
        optimizer__learning_rate=1e-3,
        **settings,
    )


def rows(workdir: Path) -> list[dict[str, str]]:
    """What `metrics.csv` holds so far."""
    if not (workdir / "metrics.csv").exists():
        return []
    with (workdir / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def wait_for(process: subprocess.Popen, condition: Callable[[], bool]) -> None:
    """Until a running program has come so far."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, "the run ended before its time"
        assert time.monotonic() < deadline
        time.sleep(0.02)


@pytest.fixture(scope="module")
def whole_run(micro_teacher: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run on photographs, with a teacher that Diffusers wrote."""
    workdir = tmp_path_factory.mktemp("runs") / "whole"
    said = succeed(micro_run(micro_teacher, photographs, workdir, steps=130, checkpoint_every=50))
    assert said.strip() == str(workdir / "model")
    return workdir


def test_prune_prints_the_plan_and_the_cost(flax_teacher: Path, tmp_path: Path) -> None:
    printed = succeed(command("prune", "prune.py", tmp_path / "cut", teacher=flax_teacher, student="bk_tiny"))
    for part in ("removed: ", "up_blocks.0.resnets.1", "down_blocks.2.attentions.1.proj_out", "parameters", "total"):
        assert part in printed
    assert StableDiffusionPipeline.from_pretrained(tmp_path / "cut").unet.config.layers_per_block == 1


def test_a_run_on_photographs_leaves_what_the_manual_says(whole_run: Path) -> None:
    table = rows(whole_run)
    assert [int(row["step"]) for row in table] == list(range(1, 131))
    losses = np.array([[float(row[f"loss_{term}"]) for term in ("task", "output", "feature")] for row in table])
    assert np.isfinite(losses).all()
    total = np.array([float(row["loss"]) for row in table])
    np.testing.assert_allclose(total, losses.sum(axis=1), rtol=1e-5)
    assert total[-20:].mean() < 0.5 * total[:5].mean()
    pairs = [name for name in table[0] if name.startswith("feature/")]
    assert pairs == [f"feature/{side}_blocks.{i}" for side in ("down", "up") for i in (0, 1)]
    features = sum(float(table[0][name]) for name in pairs)
    assert features == pytest.approx(float(table[0]["loss_feature"]), rel=1e-5)
    assert sum(float(value) for name, value in table[0].items() if name.startswith("share/")) == pytest.approx(1.0)
    assert {float(row["learning_rate"]) for row in table} == {1e-3}
    assert float(table[0]["ema_distance"]) == 0 < float(table[-1]["ema_distance"]) < 0.1
    assert all(0 <= float(row["data_wait"]) <= 1 < float(row["flops_per_second"]) for row in table)
    assert sorted(int(path.name) for path in (whole_run / "checkpoints").iterdir()) == [50, 100, 130]
    assert list((whole_run / "tensorboard").glob("events.out.tfevents.*"))
    assert json.loads((whole_run / "config.json").read_text())["student"] == tiny.MICRO_STUDENT
    sheet = np.asarray(Image.open(whole_run / "samples" / "step_000130.png"))
    assert sheet.shape == (4 + 3 * 20, 4 + 4 * 20, 3)
    teacher, average, weights = sheet[4:20], sheet[24:40], sheet[44:60]
    assert not np.array_equal(teacher, average)
    assert not np.array_equal(average, weights)

    pipeline = StableDiffusionPipeline.from_pretrained(whole_run / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.networks["unet"].config.layers_per_block == [1, 2]
    assert pipeline.unet.mid_block is None
    assert np.isfinite(pipeline("a cat", num_inference_steps=2, output_type="np").images).all()


def test_images_from_a_trained_student(whole_run: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text('file_name,text\nx.jpg,"a cat, red"\n../../y.jpg,été 🐱\n')
    settings = {"model": whole_run / "model", "prompts": tmp_path / "prompts.csv", "steps": 2, "batch_size": 2}
    succeed(command("sample", "sample.py", tmp_path / "images", **settings))
    with (tmp_path / "images" / "metadata.csv").open(newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    assert [row["text"] for row in listed] == ["a cat, red", "été 🐱"]
    assert [row["source"] for row in listed] == ["x.jpg", "../../y.jpg"]
    for row in listed:
        assert Image.open(tmp_path / "images" / row["file_name"]).size == (16, 16)
    assert not (tmp_path / "y.jpg").exists()


def test_a_killed_run_ends_bit_for_bit_where_an_undisturbed_one_does(
    whole_run: Path, micro_teacher: Path, photographs: Path, tmp_path: Path
) -> None:
    killed = tmp_path / "killed"
    arguments = micro_run(micro_teacher, photographs, killed, steps=130, checkpoint_every=50)
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(process, lambda: (killed / "checkpoints" / "50").exists() and len(rows(killed)) > 50)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = int(rows(killed)[-1]["step"])
    saved = [int(path.name) for path in (killed / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved == [50]
    assert 50 < reached < 100  # between two checkpoints
    assert not (killed / "model").exists()

    succeed(arguments)
    ours = load_file(killed / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    theirs = load_file(whole_run / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert array.tobytes() == ours[name].tobytes(), name
    timing = {"images_per_second", "flops_per_second", "data_wait", "host_memory"}
    assert [{k: v for k, v in row.items() if k not in timing} for row in rows(killed)] == [
        {k: v for k, v in row.items() if k not in timing} for row in rows(whole_run)
    ]


def test_ctrl_c_saves_and_the_same_command_continues(micro_teacher: Path, photographs: Path, tmp_path: Path) -> None:
    arguments = micro_run(micro_teacher, photographs, tmp_path / "run", steps=600, checkpoint_every=0)
    process = subprocess.Popen(arguments, cwd=ROOT, env=environment(), stderr=subprocess.PIPE, text=True)
    wait_for(process, lambda: len(rows(tmp_path / "run")) >= 5)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=300)
    assert process.returncode == 1
    assert "the same command continues" in said
    (saved,) = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir()]
    assert 5 <= saved < 600
    changed = fail(micro_run(micro_teacher, photographs, tmp_path / "run", steps=600, checkpoint_every=0, seed=5))
    assert "seed 1234, not 5" in changed
    shorter = micro_run(micro_teacher, photographs, tmp_path / "run", steps=saved + 5, checkpoint_every=0)
    assert succeed(shorter).strip().endswith("model")
    assert [int(row["step"]) for row in rows(tmp_path / "run")] == list(range(1, saved + 6))


def test_a_loss_that_is_not_finite_stops_the_run(micro_teacher: Path, photographs: Path, tmp_path: Path) -> None:
    teacher = shutil.copytree(micro_teacher, tmp_path / "teacher")
    path = teacher / "unet" / "diffusion_flax_model.msgpack"
    tree = serialization.msgpack_restore(path.read_bytes())
    tree["conv_out"]["bias"] = np.full(4, np.inf, np.float32)
    path.write_bytes(serialization.msgpack_serialize(tree))
    said = fail(micro_run(teacher, photographs, tmp_path / "run", steps=12, log_every=6, checkpoint_every=1))
    assert "not finite at step 1 " in said
    assert "loss_output inf" in said or "loss_output nan" in said
    assert "optimizer.learning_rate" in said
    assert not list((tmp_path / "run" / "checkpoints").iterdir())
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=configs/distill.py:v1,bk_smal"], "did you mean 'bk_small'?"),
        (["--config=configs/distill.py", "--config.loss.outptu=2"], "did you mean 'output'?"),
        (["--config=configs/distil.py"], "configs/distil.py"),
        (["--config=configs/distill.py", "--config.steps=many"], "--config.steps=many"),
        (["--config=configs/distill.py"], "config.teacher: empty"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    workdir = tmp_path / "run"
    assert said in fail([sys.executable, "-m", "launch.train", *arguments, f"--workdir={workdir}"])
    assert not workdir.exists()


def test_help_is_the_manual() -> None:
    result = run([sys.executable, "-m", "launch.train", "--help"])
    assert "python -m launch.train --config=configs/" in result.stdout
