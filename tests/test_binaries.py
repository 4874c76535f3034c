"""The binaries as a user starts them: whole runs on photographs, a kill and a restart, careless mistakes."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pytest
from diffusers import StableDiffusionPipeline
from PIL import Image
from safetensors.numpy import load_file

from tests import tiny
from tests.conftest import ROOT


def command(verb: str, config: str, workdir: Path, **settings: object) -> list[str]:
    flags = [f"--config.{key.replace('__', '.')}={value}" for key, value in settings.items()]
    return [sys.executable, "-m", f"launch.{verb}", f"--config=configs/{config}", *flags, f"--workdir={workdir}"]


def environment() -> dict[str, str]:
    """One CPU device, and no hub."""
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
    """A run of seconds: two stages, 16 pixels, a checkpoint every fourth update."""
    return command(
        "train",
        "distill.py:v1,runlocal",
        workdir,
        teacher=teacher,
        data=data,
        **{"student": tiny.MICRO_STUDENT, "resolution": 16, "batch_size": 2, "checkpoint_every": 4} | settings,
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


def test_prune_train_sample_on_photographs(flax_teacher: Path, photographs: Path, tmp_path: Path) -> None:
    """The whole job with a teacher that Diffusers wrote, at SD v1's layout."""
    printed = succeed(command("prune", "prune.py", tmp_path / "cut", teacher=flax_teacher, student="bk_tiny"))
    for part in ("removed: ", "up_blocks.0.resnets.1", "down_blocks.2.attentions.1.proj_out", "parameters", "total"):
        assert part in printed

    run_dir = tmp_path / "run"
    succeed(
        command(
            "train",
            "distill.py:v1,bk_tiny,runlocal",
            run_dir,
            teacher=flax_teacher,
            data=photographs,
            steps=24,
            batch_size=2,
            checkpoint_every=12,
            optimizer__learning_rate=1e-3,
        )
    )
    table = rows(run_dir)
    assert [int(row["step"]) for row in table] == list(range(1, 25))
    losses = np.array([[float(row[f"loss_{term}"]) for term in ("task", "output", "feature")] for row in table])
    assert np.isfinite(losses).all()
    total = np.array([float(row["loss"]) for row in table])
    np.testing.assert_allclose(total, losses.sum(axis=1), rtol=1e-5)
    assert total[-6:].mean() < 0.8 * total[:4].mean()
    pairs = [name for name in table[0] if name.startswith("feature/")]
    assert len(pairs) == 6
    features = sum(float(table[0][name]) for name in pairs)
    assert features == pytest.approx(float(table[0]["loss_feature"]), rel=1e-5)
    assert sorted(int(path.name) for path in (run_dir / "checkpoints").iterdir()) == [12, 24]
    assert list((run_dir / "tensorboard").glob("events.out.tfevents.*"))
    assert json.loads((run_dir / "config.json").read_text())["student"] == "bk_tiny"
    sheet = np.asarray(Image.open(run_dir / "samples" / "step_000024.png"))
    assert sheet.shape == (4 + 2 * 68, 4 + 4 * 68, 3)
    assert not np.array_equal(sheet[4:68], sheet[72:136])

    pipeline = StableDiffusionPipeline.from_pretrained(run_dir / "model")
    pipeline.set_progress_bar_config(disable=True)
    assert len(pipeline.unet.down_blocks) == 3
    assert np.isfinite(pipeline("a cat", num_inference_steps=2, output_type="np").images).all()
    again = succeed(
        command(
            "train",
            "distill.py:v1,bk_tiny,runlocal",
            run_dir,
            teacher=flax_teacher,
            data=photographs,
            steps=24,
            batch_size=2,
            checkpoint_every=12,
            optimizer__learning_rate=1e-3,
        )
    )
    assert again.strip().endswith("model")  # nothing left to do

    (tmp_path / "prompts.csv").write_text('file_name,text\nx.jpg,"a cat, red"\n../../y.jpg,été 🐱\n')
    succeed(
        command(
            "sample",
            "sample.py",
            tmp_path / "images",
            model=run_dir / "model",
            prompts=tmp_path / "prompts.csv",
            steps=2,
            batch_size=2,
        )
    )
    with (tmp_path / "images" / "metadata.csv").open(newline="", encoding="utf-8") as file:
        listed = list(csv.DictReader(file))
    assert [row["text"] for row in listed] == ["a cat, red", "été 🐱"]
    assert [row["source"] for row in listed] == ["x.jpg", "../../y.jpg"]
    for row in listed:
        assert Image.open(tmp_path / "images" / row["file_name"]).size == (64, 64)
    assert not (tmp_path / "y.jpg").exists()


def test_a_killed_run_ends_bit_for_bit_where_an_undisturbed_one_does(
    micro_teacher: Path, photographs: Path, tmp_path: Path
) -> None:
    calm, killed = tmp_path / "calm", tmp_path / "killed"
    steps = 260
    succeed(micro_run(micro_teacher, photographs, calm, steps=steps, checkpoint_every=100))

    arguments = micro_run(micro_teacher, photographs, killed, steps=steps, checkpoint_every=100)
    process = subprocess.Popen(
        arguments, cwd=ROOT, env=environment(), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    wait_for(process, lambda: (killed / "checkpoints" / "100").exists() and len(rows(killed)) > 100)
    process.send_signal(signal.SIGKILL)
    process.wait()
    reached = int(rows(killed)[-1]["step"])
    saved = [int(path.name) for path in (killed / "checkpoints").iterdir() if path.name.isdigit()]
    assert saved == [100]
    assert 100 < reached < 200  # between two checkpoints
    assert not (killed / "model").exists()

    succeed(arguments)
    ours = load_file(killed / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    theirs = load_file(calm / "model" / "unet" / "diffusion_pytorch_model.safetensors")
    assert ours.keys() == theirs.keys()
    for name, array in theirs.items():
        assert array.tobytes() == ours[name].tobytes(), name
    timing = "images_per_second"
    assert [{k: v for k, v in row.items() if k != timing} for row in rows(killed)] == [
        {k: v for k, v in row.items() if k != timing} for row in rows(calm)
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
    """A learning rate beyond all reason, so that weights overflow between two logged steps."""
    arguments = micro_run(
        micro_teacher,
        photographs,
        tmp_path / "run",
        steps=12,
        log_every=6,
        checkpoint_every=4,
        optimizer__learning_rate=1e30,
    )
    said = fail(arguments)
    assert "not finite at step" in said
    assert "optimizer.learning_rate" in said
    step = int(said.split("at step ")[1].split()[0])
    saved = [int(path.name) for path in (tmp_path / "run" / "checkpoints").iterdir() if path.name.isdigit()]
    assert all(number < step for number in saved)
    assert not (tmp_path / "run" / "model").exists()


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--config=configs/distill.py:v1,bk_smal"], "did you mean 'bk_small'?"),
        (["--config=configs/distill.py:v1,v2"], "exclude each other"),
        (["--config=configs/distill.py", "--config.loss.outptu=2"], "did you mean 'output'?"),
        (["--config=configs/distil.py"], "configs/distil.py"),
        (["--config=configs/distill.py", "--config.steps=many"], "--config.steps=many"),
        (["--config=configs/distill.py", "--confg.steps=3"], "--confg.steps"),
        (["--config=configs/distill.py"], "config.teacher: empty"),
        (["--config=configs/distill.py", "teacher"], "'teacher': unexpected argument"),
    ],
)
def test_mistakes_on_the_command_line_are_one_line(tmp_path: Path, arguments: list[str], said: str) -> None:
    workdir = tmp_path / "run"
    assert said in fail([sys.executable, "-m", "launch.train", *arguments, f"--workdir={workdir}"])
    assert not workdir.exists()


def test_help_is_the_manual() -> None:
    for verb in ("prune", "train", "sample"):
        result = run([sys.executable, "-m", f"launch.{verb}", "--help"])
        assert f"python -m launch.{verb} --config=configs/" in result.stdout
