"""A model's identity is all that decides its images, and a workdir of images belongs to one model."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from bksdm_jax.base.errors import InputError
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pipelines.save import SaveConfig, write_pipeline
from bksdm_jax.sampling.run import SampleConfig, sample
from tests.arrays import require_equal


def larger(file: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / file)
        save_file({name: tensor * 1.1 for name, tensor in tensors.items()}, folder / file, {"format": "pt"})

    return change


def edited(file: str, **changes: Any) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        path = folder / file
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


CHANGES = {
    "weights of the U-Net": ("unet", larger("unet/diffusion_pytorch_model.safetensors")),
    "weights of the autoencoder": ("vae", larger("vae/diffusion_pytorch_model.safetensors")),
    "weights of the text encoder": ("text_encoder", larger("text_encoder/model.safetensors")),
    "scaling factor": ("vae", edited("vae/config.json", scaling_factor=0.2)),
    "activation": ("text_encoder", edited("text_encoder/config.json", hidden_act="gelu")),
    "frequencies": ("unet", edited("unet/config.json", flip_sin_to_cos=False)),
    "what it predicts": ("scheduler", edited("scheduler/scheduler_config.json", prediction_type="v_prediction")),
    "padding": ("tokenizer", edited("tokenizer/tokenizer_config.json", pad_token="!")),
    "class of the scheduler": ("scheduler", edited("model_index.json", scheduler=["diffusers", "DDIMScheduler"])),
}


@pytest.mark.parametrize("what", CHANGES)
def test_whatever_changes_images_changes_the_identity(micro_torch_teacher: Path, tmp_path: Path, what: str) -> None:
    folder = shutil.copytree(micro_torch_teacher, tmp_path / "model")
    before = load_pipeline(folder).identity()
    assert before == load_pipeline(micro_torch_teacher).identity()
    part, change = CHANGES[what]
    change(folder)
    after = load_pipeline(folder).identity()
    assert {name for name in before if before[name] != after[name]} == {part}


@pytest.mark.slow
def test_images_of_a_model_that_has_changed_are_not_mixed(micro_torch_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(micro_torch_teacher, tmp_path / "model")
    config = SampleConfig(model=str(folder), prompt="a cat", steps=1, batch_size=1, guidance_scale=1.0)
    sample(config, tmp_path / "images")
    sample(config, tmp_path / "images")  # all there
    _, change = CHANGES["weights of the autoencoder"]
    change(folder)
    with pytest.raises(InputError, match=r"config\.json: .*model.*vae"):
        sample(config, tmp_path / "images")


def test_the_format_of_the_weights_does_not_matter(micro_teacher: Path, tmp_path: Path) -> None:
    """The same numbers as Flax and as PyTorch files are one model."""
    pipeline = load_pipeline(micro_teacher)
    written = load_pipeline(write_pipeline(tmp_path / "out", pipeline, SaveConfig()))
    require_equal(written.params, pipeline.params)
    ours, theirs = written.identity(), pipeline.identity()
    assert {name for name in ours if ours[name] != theirs[name]} <= {"scheduler"}  # what is written says more
