"""What a run refuses at the door: one line, and nothing written."""

import dataclasses
import shutil
from pathlib import Path

import jax
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.sampling.run import SampleConfig, sample
from bksdm_jax.tasks.distill import inputs as run_module
from bksdm_jax.tasks.distill.config import DistillConfig, ValidationConfig
from bksdm_jax.tasks.distill.losses import LossWeights
from bksdm_jax.tasks.distill.task import distill
from bksdm_jax.training.sample_grids import SampleGridConfig
from bksdm_jax.training.sharding import make_mesh
from bksdm_jax.training.state import OptimizerConfig
from tests import tiny


@pytest.fixture
def settings(micro_teacher: Path, photographs: Path, monkeypatch: pytest.MonkeyPatch) -> DistillConfig:
    """A run that would work, on one device."""
    monkeypatch.setattr(run_module, "make_mesh", lambda fsdp: make_mesh(fsdp, jax.devices()[:1]))
    return DistillConfig(
        str(micro_teacher), tiny.MICRO_STUDENT, str(photographs), resolution=16, batch_size=2, accumulation=1
    )


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"teacher": "/no/such/place"}, "/no/such/place: no such pipeline folder"),
        ({"data": "/no/such/place"}, "/no/such/place: no such folder"),
        ({"student": "bk_huge"}, "bk_huge"),
        ({"student": "down_blocks.0.resnets.1"}, "can't work"),
        ({"student": "down_blocks.0.attentions.1"}, "can't express"),
        ({"student_init": "techer"}, "did you mean 'teacher'?"),
        ({"dtype": "float16"}, "known: float32, bfloat16"),
        ({"format": "bin"}, "known: safetensors, flax"),
        ({"resolution": 18}, "resolution: 18 pixels; this model needs a multiple of 4"),
        ({"batch_size": 3, "accumulation": 2}, "batch_size: 3 doesn't divide by accumulation 2"),
        ({"accumulation": 0}, "accumulation is 0"),
        ({"steps": 0}, "steps is 0"),
        ({"seed": -1}, "seed is -1"),
        ({"seed": 2**32}, "in [0, 4294967295]"),
        ({"keep_checkpoints": -1}, "keep_checkpoints is -1"),
        ({"log_every": -5}, "log_every is -5"),
        ({"optimizer": OptimizerConfig(clip_norm=0.0)}, "optimizer.clip_norm is 0.0"),
        ({"optimizer": OptimizerConfig(learning_rate=float("nan"))}, "optimizer.learning_rate is nan"),
        ({"optimizer": OptimizerConfig(ema_decay=1.5)}, "optimizer.ema_decay is 1.5"),
        ({"loss": LossWeights(feature=-1.0)}, "loss.feature is -1.0"),
        ({"sheets": SampleGridConfig(steps=2000)}, "2000 sampler steps"),
        ({"format": "flax", "student": "mid_block.attentions.0,mid_block.resnets.1"}, "flax has no mid block"),
        ({"save_weights": "both"}, "save_weights: unknown name 'both'; known: ema, raw"),
        ({"remat": "half"}, "known: none, products, attention, blocks, full"),
        ({"caption_dropout": 1.5}, "caption_dropout is 1.5"),
        ({"noise_offset": -0.1}, "noise_offset is -0.1"),
        ({"examples": 99}, "examples: 99, but"),
        ({"profile_step": -1}, "profile_step is -1"),
        ({"loss": LossWeights(feature_source="attn")}, "loss.feature_source: unknown name 'attn'"),
        ({"loss": LossWeights(feature_scales=("mid_block=2",))}, "no feature 'mid_block'"),
        ({"validation": ValidationConfig(images=-1)}, "validation.images is -1"),
        ({"validation": ValidationConfig(split="test")}, "is an image folder, which has no splits"),
        ({"validation": ValidationConfig(split="train")}, "'train' is what is trained on"),
        ({"profile_step": 50_000}, "profile_step: 50000, 3 updates from there on"),
        ({"optimizer": OptimizerConfig(beta2=1.0)}, "optimizer.beta2 is 1.0"),
        ({"sheets": SampleGridConfig(prompts=(1, 2))}, "sheets.prompts: (1, 2); expected texts"),
        (
            {"resolution": 13, "sheets": SampleGridConfig(steps=0)},
            "resolution: 13 pixels; this model needs a multiple of",
        ),
        ({"fsdp": 2}, "fsdp: 2 doesn't divide the 1 devices"),
    ],
)
def test_runs_that_cannot_work_write_nothing(settings: DistillConfig, tmp_path: Path, change: dict, said: str) -> None:
    with pytest.raises(InputError) as error:
        distill(dataclasses.replace(settings, **change), tmp_path / "run")
    assert said in str(error.value)
    assert "\n" not in str(error.value)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_things_is_not_a_workdir(settings: DistillConfig, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError, match="not empty"):
        distill(settings, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_an_unreadable_image_is_named(settings: DistillConfig, photographs: Path, tmp_path: Path) -> None:
    data = shutil.copytree(photographs, tmp_path / "data")
    (data / "coffee.png").write_bytes(b"not an image")
    alone = LossWeights(output=0.0, feature=0.0)
    config = dataclasses.replace(settings, data=str(data), steps=6, dtype="float32", loss=alone)
    with pytest.raises(InputError, match=r"coffee\.png: not a readable image"):
        distill(config, tmp_path / "run")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({}, "give either prompts"),
        ({"prompt": "a cat", "prompts": "cats.txt"}, "give either prompts"),
        ({"prompts": "/no/such/list.txt"}, "/no/such/list.txt: can't be read"),
        ({"prompt": "a cat", "sampler": "pmdm"}, "did you mean 'pndm'?"),
        ({"prompt": "a cat", "steps": 2000}, "2000 sampler steps"),
        ({"prompt": "a cat", "resolution": 15}, "resolution: 15 pixels"),
        ({"prompt": "a cat", "batch_size": 0}, "batch_size is 0"),
        ({"prompt": "a cat", "seed": -3}, "seed is -3"),
        ({"prompt": "a cat", "guidance_scale": float("inf")}, "guidance_scale is inf"),
        ({"prompt": "a cat", "dtype": "half"}, "dtype"),
        ({"prompt": "a cat", "model": "/no/such/model"}, "no such pipeline folder"),
    ],
)
def test_sampling_that_cannot_work_writes_nothing(micro_teacher: Path, tmp_path: Path, change: dict, said: str) -> None:
    config = SampleConfig(**{"model": str(micro_teacher)} | change)
    with pytest.raises(InputError) as error:
        sample(config, tmp_path / "images")
    assert said in str(error.value)
    assert not (tmp_path / "images").exists()


def test_sampling_goes_on_where_it_stopped(micro_teacher: Path, tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat\na rocket\nspace\n")
    config = SampleConfig(str(micro_teacher), prompts=str(tmp_path / "prompts.txt"), steps=2, batch_size=2)
    out = tmp_path / "out"
    assert sample(config, out) == 3
    before = {path.name: path.read_bytes() for path in (out / "images").iterdir()}
    assert sorted(before) == ["000000.png", "000001.png", "000002.png"]
    (out / "images" / "000001.png").unlink()
    (out / "metadata.csv").unlink()
    kept = (out / "images" / "000000.png").stat().st_mtime_ns
    sample(dataclasses.replace(config, batch_size=1), out)
    assert (out / "images" / "000000.png").stat().st_mtime_ns == kept
    assert {path.name for path in (out / "images").iterdir()} == set(before)
    assert (out / "metadata.csv").read_text().splitlines()[1] == "images/000000.png,a cat"
    with pytest.raises(InputError, match="seed 0, not 3"):
        sample(dataclasses.replace(config, seed=3), out)
    model = shutil.copytree(micro_teacher, tmp_path / "model")
    moved = dataclasses.replace(config, model=str(model))
    with pytest.raises(InputError, match="workdir's run has model"):
        sample(moved, out)
