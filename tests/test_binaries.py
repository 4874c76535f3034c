"""The binaries as a user starts them: whole runs on photographs, an interruption, careless mistakes."""

import csv
import dataclasses
import json
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.numpy import load_file

from bksdm_jax.base.exits import RESTART
from tests import tiny
from tests.binaries import fail, metrics, micro_run, settings, start, succeed

EPHEMERAL = {"images_per_second", "flops_per_second", "data_wait", "host_memory"}  # in no two runs the same


def wait_for(process: subprocess.Popen[str], condition: Callable[[], bool]) -> None:
    """Until a running program has come so far."""
    deadline = time.monotonic() + 300
    while not condition():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < deadline
        time.sleep(0.02)


def weights(workdir: Path) -> dict[str, bytes]:
    """The student's, bit for bit."""
    arrays = load_file(workdir / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    return {name: array.tobytes() for name, array in arrays.items()}


def lasting(workdir: Path) -> list[dict[str, str]]:
    """The metrics that a run gives again."""
    return [{key: value for key, value in row.items() if key not in EPHEMERAL} for row in metrics(workdir)]


def saved(workdir: Path) -> list[int]:
    """The steps of the whole checkpoints."""
    return sorted(int(path.name) for path in (workdir / "checkpoints").iterdir() if path.name.isdigit())


def saved_and_on(workdir: Path) -> bool:
    """Whether there is a checkpoint, and updates after the newest one."""
    rows, steps = metrics(workdir), saved(workdir) if (workdir / "checkpoints").exists() else []
    return bool(rows and steps) and int(rows[-1]["step"]) > steps[-1]


@dataclasses.dataclass(frozen=True)
class Stopped:
    """A run that was told to stop: where it is, the step it stopped after, and what it said."""

    workdir: Path
    step: int
    said: str


@pytest.fixture(scope="module")
def stopped(micro_teacher: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory) -> Stopped:
    """A process that got a SIGTERM early in a long run."""
    workdir = tmp_path_factory.mktemp("runs") / "stopped"
    process = start("train", micro_run(micro_teacher, photographs, workdir, steps=100_000))
    wait_for(process, lambda: len(metrics(workdir)) >= 3)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=300)
    assert process.returncode == RESTART, said
    (step,) = saved(workdir)
    return Stopped(workdir, step, said)


@pytest.fixture(scope="module")
def undisturbed(
    stopped: Stopped, micro_teacher: Path, photographs: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A run on photographs, with a teacher that Diffusers wrote; a little longer than the stopped one got."""
    workdir = tmp_path_factory.mktemp("runs") / "undisturbed"
    steps = max(stopped.step + 3, 40)
    said = succeed(
        "train", micro_run(micro_teacher, photographs, workdir, steps=steps, checkpoint_every=25, sheets__steps=2)
    )
    assert said.strip() == str(workdir / "model")
    return workdir


@pytest.mark.slow
def test_a_stopped_run_ends_bit_for_bit_where_an_undisturbed_one_does(
    stopped: Stopped, undisturbed: Path, micro_teacher: Path, photographs: Path
) -> None:
    assert stopped.step >= 3
    assert len(metrics(stopped.workdir)) == stopped.step
    assert not (stopped.workdir / "model").exists()
    assert str(stopped.workdir) in stopped.said.splitlines()[-1]
    steps = len(metrics(undisturbed))
    assert stopped.step < steps
    arguments = micro_run(micro_teacher, photographs, stopped.workdir, steps=steps)
    changed = fail("train", [*arguments, "--config.seed=5"])
    assert all(fact in changed for fact in ("seed", "1234", "5"))
    succeed("train", arguments)
    assert weights(stopped.workdir) == weights(undisturbed)
    assert lasting(stopped.workdir) == lasting(undisturbed)
    shorter = fail("train", micro_run(micro_teacher, photographs, stopped.workdir, steps=2))
    assert "steps: 2" in shorter


def test_a_run_on_photographs_leaves_what_the_manual_says(undisturbed: Path) -> None:
    table = metrics(undisturbed)
    steps = len(table)
    assert [int(row["step"]) for row in table] == list(range(1, steps + 1))
    losses = np.array([[float(row[f"loss_{term}"]) for term in ("task", "output", "feature")] for row in table])
    assert np.isfinite(losses).all()
    total = np.array([float(row["loss"]) for row in table])
    np.testing.assert_allclose(total, losses.sum(axis=1), rtol=1e-5)
    assert total[-10:].mean() < 0.7 * total[:5].mean()
    pairs = [name for name in table[0] if name.startswith("feature/")]
    assert pairs == [f"feature/{side}_blocks.{i}" for side in ("down", "up") for i in (0, 1)]
    features = sum(float(table[0][name]) for name in pairs)
    assert features == pytest.approx(float(table[0]["loss_feature"]), rel=1e-5)
    assert sum(float(value) for name, value in table[0].items() if name.startswith("share/")) == pytest.approx(1.0)
    assert {float(row["learning_rate"]) for row in table} == {3e-3}
    assert float(table[0]["ema_distance"]) == 0 < float(table[-1]["ema_distance"]) < 0.3
    assert all(0 <= float(row["data_wait"]) <= 1 < float(row["flops_per_second"]) for row in table)
    assert saved(undisturbed) == [*range(25, steps, 25), steps][-3:]
    assert list((undisturbed / "tensorboard").glob("events.out.tfevents.*"))
    assert json.loads((undisturbed / "config.json").read_text())["student"] == tiny.MICRO_STUDENT
    sheet = np.asarray(Image.open(undisturbed / "samples" / f"step_{steps:06d}.png"))
    assert sheet.shape == (4 + 3 * 20, 4 + 4 * 20, 3)
    teacher, average, latest = sheet[4:20], sheet[24:40], sheet[44:60]
    assert not np.array_equal(teacher, average)
    assert not np.array_equal(average, latest)

    pipeline = StableDiffusionPipeline.from_pretrained(undisturbed / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert pipeline.unet.config.layers_per_block == [1, 2]
    assert pipeline.unet.mid_block is None
    assert np.isfinite(pipeline("a cat", num_inference_steps=2, output_type="np").images).all()


def test_images_from_a_trained_student(undisturbed: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.csv").write_text('file_name,text\nx.jpg,"a cat, red"\n../../y.jpg,été 🐱\nz.png,space\n')
    out = tmp_path / "out"
    given = {"model": undisturbed / "model", "prompts": tmp_path / "prompts.csv", "steps": 2, "batch_size": 2}
    arguments = settings("sample.py", out, **given)
    succeed("sample", arguments)
    table = (out / "metadata.csv").read_bytes()
    with (out / "metadata.csv").open(newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    assert [row["text"] for row in listed] == ["a cat, red", "été 🐱", "space"]
    assert [row["source"] for row in listed] == ["x.jpg", "../../y.jpg", "z.png"]
    assert [row["file_name"] for row in listed] == [f"images/{i:06d}.png" for i in range(3)]
    before = {path.name: path.read_bytes() for path in (out / "images").iterdir()}
    assert sorted(before) == ["000000.png", "000001.png", "000002.png"]
    assert all(Image.open(out / row["file_name"]).size == (16, 16) for row in listed)
    assert not (tmp_path / "y.jpg").exists()

    (out / "images" / "000001.png").unlink()
    (out / "metadata.csv").unlink()
    kept = (out / "images" / "000000.png").stat().st_mtime_ns
    assert "3" in succeed("sample", arguments)
    assert (out / "images" / "000000.png").stat().st_mtime_ns == kept
    assert {path.name for path in (out / "images").iterdir()} == set(before)
    assert (out / "metadata.csv").read_bytes() == table
    succeed("sample", settings("sample.py", out, **given | {"batch_size": 1}))  # all are there
    changed = fail("sample", [*arguments, "--config.seed=3"])
    assert all(fact in changed for fact in ("seed", "0", "3"))
    model = shutil.copytree(undisturbed / "model", tmp_path / "model")
    assert "model" in fail("sample", settings("sample.py", out, **given | {"model": model}))


@pytest.mark.parametrize(
    ("arguments", "facts"),
    [
        (["--config=configs/distill.py:v1,bk_smal"], ("bk_smal", "'bk_small'")),
        (["--config=configs/distill.py", "--config.loss.outptu=2"], ("outptu", "--config.loss.output")),
        (["--config=configs/distil.py"], ("configs/distil.py", "configs/distill.py")),
        (["--config=configs/distill.py", "--config.steps=many"], ("--config.steps=many",)),
        (["--config=configs/distill.py", "--stepz=2"], ("--stepz",)),
        (["--config=configs/distill.py", "extra"], ("'extra'",)),
        (["--config=configs/distill.py"], ("config.teacher",)),
        ([], ("--config",)),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(tmp_path: Path, arguments: list[str], facts: tuple[str]) -> None:
    workdir = tmp_path / "run"
    said = fail("train", [*arguments, f"--workdir={workdir}"])
    assert all(fact in said for fact in facts), said
    assert not workdir.exists()


@pytest.mark.slow
def test_a_killed_run_ends_bit_for_bit_where_an_undisturbed_one_does(
    undisturbed: Path, micro_teacher: Path, photographs: Path, tmp_path: Path
) -> None:
    process = start("train", micro_run(micro_teacher, photographs, tmp_path, steps=100_000, checkpoint_every=10))
    wait_for(process, lambda: saved_and_on(tmp_path))
    process.kill()
    process.communicate()
    assert not (tmp_path / "model").exists()
    reached = int(metrics(tmp_path)[-1]["step"])
    assert saved(tmp_path)[-1] < reached  # what comes after the checkpoint is made again
    steps = max(len(metrics(undisturbed)), reached)
    succeed("train", micro_run(micro_teacher, photographs, tmp_path, steps=steps))
    succeed("train", micro_run(micro_teacher, photographs, undisturbed, steps=steps))
    assert weights(tmp_path) == weights(undisturbed)
    assert lasting(tmp_path) == lasting(undisturbed)
