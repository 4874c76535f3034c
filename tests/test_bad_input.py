"""What a run refuses at the door: one line that names file, key and value, and nothing written."""

import dataclasses
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.sampling.config import SampleConfig
from bksdm_jax.sampling.run import sample
from bksdm_jax.tasks.distill.config import DistillConfig, LossWeights, ValidationConfig
from bksdm_jax.tasks.distill.task import distill
from bksdm_jax.training.config import OptimizerConfig, SampleGridConfig
from tests import tiny


@pytest.fixture
def settings(micro_teacher: Path, photographs: Path) -> DistillConfig:
    """A run that would work."""
    return DistillConfig(
        str(micro_teacher), tiny.MICRO_STUDENT, str(photographs), resolution=16, batch_size=8, accumulation=1
    )


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"teacher": "/no/such/place"}, ("/no/such/place",)),
        ({"data": "/no/such/place"}, ("/no/such/place",)),
        ({"student": "bk_huge"}, ("bk_huge",)),
        ({"student": "down_blocks.0.resnets.1"}, ("student", "up_blocks.1.resnets.2")),
        ({"student": "mid_block.resnets.1"}, ("mid_block", "found R-A")),
        ({"student": "bk_small,mid_block"}, ("student: 'bk_small,mid_block'", "one preset")),
        ({"student_init": "techer"}, ("student_init", "'techer'", "'teacher'")),
        ({"dtype": "float16"}, ("dtype", "'float16'", "float32, bfloat16")),
        ({"format": "bin"}, ("format", "'bin'", "safetensors, flax")),
        ({"resolution": 18}, ("resolution: 18", "multiple of 4")),
        ({"resolution": 2**26}, ("resolution: 67108864", "4096")),
        ({"batch_size": 3, "accumulation": 2}, ("batch_size: 3", "accumulation 2", "8 device")),
        ({"accumulation": 0}, ("accumulation is 0",)),
        ({"steps": 0}, ("steps is 0",)),
        ({"seed": -1}, ("seed is -1",)),
        ({"seed": 2**32}, ("seed is 4294967296", "4294967295")),
        ({"keep_checkpoints": -1}, ("keep_checkpoints is -1",)),
        ({"log_every": -5}, ("log_every is -5",)),
        ({"optimizer": OptimizerConfig(clip_norm=0.0)}, ("optimizer.clip_norm is 0.0",)),
        ({"optimizer": OptimizerConfig(learning_rate=float("nan"))}, ("optimizer.learning_rate is nan",)),
        ({"optimizer": OptimizerConfig(ema_decay=1.5)}, ("optimizer.ema_decay is 1.5",)),
        ({"optimizer": OptimizerConfig(beta2=1.0)}, ("optimizer.beta2 is 1.0",)),
        ({"loss": LossWeights(feature=-1.0)}, ("loss.feature is -1.0",)),
        ({"sheets": SampleGridConfig(steps=2000)}, ("2000",)),
        ({"format": "flax", "student": "mid_block.attentions.0,mid_block.resnets.1"}, ("format", "flax", "mid block")),
        ({"save_weights": "both"}, ("save_weights", "'both'", "ema, raw")),
        ({"remat": "half"}, ("remat", "'half'", "none, products, attention, blocks, full")),
        ({"norms": "palas"}, ("norms", "'palas'", "xla, pallas")),
        ({"norms": "pallas"}, ("norms", "pallas", "NVIDIA", "cpu")),
        ({"caption_dropout": 1.5}, ("caption_dropout is 1.5",)),
        ({"noise_offset": -0.1}, ("noise_offset is -0.1",)),
        ({"examples": 99}, ("examples: 99", "6")),
        ({"profile_step": -1}, ("profile_step is -1",)),
        ({"profile_step": 50_000}, ("profile_step: 50000",)),
        ({"loss": LossWeights(feature_source="attn")}, ("loss.feature_source", "'attn'")),
        ({"loss": LossWeights(feature_scales=("mid_block=2",))}, ("'mid_block'",)),
        ({"validation": ValidationConfig(images=-1)}, ("validation.images is -1",)),
        ({"validation": ValidationConfig(split="test")}, ("validation.split", "'test'", "no splits")),
        ({"validation": ValidationConfig(split="train")}, ("validation.split", "'train'")),
        ({"sheets": SampleGridConfig(prompts=(1, 2))}, ("sheets.prompts", "(1, 2)")),
        ({"resolution": 13, "sheets": SampleGridConfig(steps=0)}, ("resolution: 13",)),
        ({"fsdp": 3}, ("fsdp: 3", "8 devices")),
    ],
)
def test_runs_that_cannot_work_write_nothing(
    settings: DistillConfig, tmp_path: Path, change: dict, facts: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as error:
        distill(dataclasses.replace(settings, **change), tmp_path / "run")
    require_one_line(error.value, facts)
    assert not (tmp_path / "run").exists()


def test_a_folder_with_other_things_is_not_a_workdir(settings: DistillConfig, tmp_path: Path) -> None:
    (tmp_path / "mine.txt").touch()
    with pytest.raises(InputError) as error:
        distill(settings, tmp_path)
    require_one_line(error.value, (str(tmp_path),))
    assert [path.name for path in tmp_path.iterdir()] == ["mine.txt"]


def test_weights_of_another_student_are_told_apart_in_words(settings: DistillConfig, tmp_path: Path) -> None:
    with pytest.raises(InputError) as error:
        distill(dataclasses.replace(settings, student_init=settings.teacher), tmp_path / "run")
    require_one_line(error.value, ("student_init", "down_blocks.0", "32 channels", "blocks RA RA", "blocks RA"))
    assert "Stage(" not in str(error.value)


@pytest.fixture(scope="module")
def broken(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Files that can't be used."""
    folder = tmp_path_factory.mktemp("broken")
    (folder / "none").mkdir()
    (folder / "images").mkdir()
    Image.new("RGB", (16, 16)).save(folder / "images" / "a.png")
    (folder / "images" / "b.png").write_bytes((folder / "images" / "a.png").read_bytes()[:50])
    Image.new("RGB", (16, 1)).save(folder / "images" / "tiny.gif")
    (folder / "columns.csv").write_text("file_name,caption\na.jpg,a cat\n")
    (folder / "rows.csv").write_text("file_name,text\na.jpg,a cat\nb.jpg,a cat, red\n")
    (folder / "nul.txt").write_bytes(b"a cat\na \0 cat\n")
    (folder / "empty.txt").write_text("\n \n")
    return folder


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({}, ("prompts",)),
        ({"prompt": "a cat", "prompts": "cats.txt"}, ("prompts",)),
        ({"prompts": "/no/such/list.txt"}, ("/no/such/list.txt",)),
        ({"prompt": "a cat", "sampler": "pmdm"}, ("sampler", "'pmdm'", "'pndm'")),
        ({"prompt": "a cat", "steps": 2000}, ("2000",)),
        ({"prompt": "a cat", "resolution": 15}, ("resolution: 15",)),
        ({"prompt": "a cat", "batch_size": 0}, ("batch_size is 0",)),
        ({"prompt": "a cat", "seed": -3}, ("seed is -3",)),
        ({"prompt": "a cat", "guidance_scale": float("inf")}, ("guidance_scale is inf",)),
        ({"prompt": "a cat", "dtype": "half"}, ("dtype", "'half'")),
        ({"prompt": "a cat", "model": "/no/such/model"}, ("/no/such/model",)),
        ({"prompt": "a cat", "steps": 0}, ("steps is 0",)),
        ({"prompt": "a cat", "height": 17}, ("height: 17",)),
        ({"prompt": "a cat", "width": 2**20}, ("width: 1048576", "4096")),
        ({"prompt": "a cat", "eta": 1.5}, ("eta is 1.5",)),
        ({"prompt": "a cat", "strength": 1.5}, ("strength is 1.5",)),
        ({"prompt": "a cat", "init": "{images}", "strength": 0.0}, ("strength: 0.0",)),
        ({"prompt": "a cat", "init": "{images}", "strength": -0.5}, ("strength is -0.5",)),
        ({"prompt": "a cat", "init": "/no/such/image.png"}, ("/no/such/image.png",)),
        ({"prompt": "a cat", "init": "{broken}/images"}, ("{broken}/images/b.png", "not a readable image")),
        ({"prompt": "a cat", "init": "{broken}/images/tiny.gif"}, ("{broken}/images/tiny.gif", "height: 0")),
        ({"prompt": "a cat", "init": "{broken}/none"}, ("init", "{broken}/none", "no images")),
        ({"prompts": "{broken}/columns.csv"}, ("{broken}/columns.csv", "'text'")),
        ({"prompts": "{broken}/rows.csv"}, ("{broken}/rows.csv", "line 3")),
        ({"prompts": "{broken}/nul.txt"}, ("{broken}/nul.txt", "line 2", "NUL")),
        ({"prompts": "{broken}/empty.txt"}, ("{broken}/empty.txt", "no prompts")),
        ({"prompt": "a \udcff cat"}, ("prompt", "character 3")),
        ({"prompt": "a cat", "negative_prompt": "\ud800"}, ("negative_prompt", "character 1")),
        ({"prompt": "a cat", "negative_prompt": "b" * 70_000}, ("negative_prompt", "70000 characters")),
        ({"prompt": "a cat", "format": "webp"}, ("format", "'webp'", "png, jpeg")),
        ({"prompt": "a cat", "images_per_prompt": 0}, ("images_per_prompt is 0",)),
        ({"prompt": "a cat", "images_per_prompt": 10**9}, ("images_per_prompt: 1000000000", "1000000 images")),
        ({"prompt": "a cat", "workers": 0}, ("workers is 0",)),
        ({"prompt": "a cat", "switch_at": 2}, ("switch_at", "teacher")),
        ({"prompt": "a cat", "teacher": "{model}"}, ("teacher", "switch_at")),
        ({"prompt": "a cat", "teacher": "/no/such/teacher", "switch_at": 2}, ("/no/such/teacher",)),
        ({"prompt": "a cat", "beside": ("/no/such/student",)}, ("/no/such/student",)),
        ({"prompt": "a cat", "beside": ("",)}, ("beside", "''")),
        ({"prompt": "a cat", "beside": ("{model}",) * 100}, ("beside: 100 models", "64")),
        ({"prompt": "a cat", "latents": "/no/such/noise.npy"}, ("/no/such/noise.npy",)),
        ({"prompt": "a cat", "protocol": "bk_sdm", "height": 256}, ("height: 256", "bk_sdm", "512")),
        ({"prompt": "a cat", "protocol": "coco"}, ("protocol", "'coco'", "bk_sdm")),
        ({"prompt": "a cat", "vae": "/no/such/vae"}, ("/no/such/vae",)),
        ({"prompt": "a cat", "clip_skip": 99}, ("clip_skip is 99",)),
        ({"prompt": "a cat", "embeddings": (1,)}, ("embeddings: 1", "FILE")),
        ({"prompt": "a cat", "embeddings": ("a" * 5000,)}, ("embeddings",)),
        ({"prompt": "a cat", "vae": "a" * 5000}, ("vae",)),
        ({"prompt": "a cat", "init": "~no such user/x.png"}, ("init", "~no such user")),
        ({"prompt": "a cat", "previews": 999}, ("previews is 999",)),
        ({"prompt": "a cat", "previews": 1, "preview_vae": "~no such user/x"}, ("vae", "~no such user")),
    ],
)
def test_sampling_that_cannot_work_writes_nothing(
    micro_teacher: Path, photographs: Path, broken: Path, tmp_path: Path, change: dict, facts: tuple[str, ...]
) -> None:
    places = {"model": micro_teacher, "images": photographs, "broken": broken}

    def filled(value: Any) -> Any:
        if isinstance(value, tuple):
            return tuple(map(filled, value))
        return value.format(**places) if isinstance(value, str) else value

    config = SampleConfig(**{"model": str(micro_teacher)} | {key: filled(value) for key, value in change.items()})
    with pytest.raises(InputError) as error:
        sample(config, tmp_path / "images")
    require_one_line(error.value, filled(facts))
    assert not (tmp_path / "images").exists()


def require_one_line(error: InputError, facts: tuple[str, ...]) -> None:
    said = str(error)
    assert all(fact in said for fact in facts), said
    assert "\n" not in said
