"""Old configs and odd text encoders give what Diffusers and Transformers make of them."""

import json
import logging
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline
from safetensors.torch import load_file, save_file

from bksdm_jax.base.errors import InputError
from bksdm_jax.interop.components import text_encoder_difference
from bksdm_jax.pipelines.load import find_model, load_pipeline


@pytest.fixture
def folder(micro_torch_teacher: Path, tmp_path: Path) -> Path:
    return shutil.copytree(micro_torch_teacher, tmp_path / "model")


def edit(path: Path, **changes: Any) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


@pytest.mark.parametrize(
    ("version", "size"), [("0.8.1", 8), ("0.8.0.dev0", 32), ("0.9.0", 32), ("0.10.0", 8), ("0.4.0", 96), (None, 8)]
)
def test_the_sample_size_is_the_pipelines(
    folder: Path, caplog: pytest.LogCaptureFixture, version: str | None, size: int
) -> None:
    file = folder / "unet" / "config.json"
    json_ = json.loads(file.read_text()) | {"sample_size": size}
    json_.pop("_diffusers_version")
    file.write_text(json.dumps(json_ | ({"_diffusers_version": version} if version else {})))
    theirs = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    with caplog.at_level(logging.INFO):
        ours = find_model(folder).architectures.denoiser
    assert ours.sample_size == theirs.unet.config.sample_size
    assert ("sample_size" in caplog.text) == (ours.sample_size != size)


def test_old_names_of_stages(folder: Path) -> None:
    before = find_model(folder).architectures.denoiser
    edit(folder / "unet" / "config.json", up_block_types=["UNetResUpBlock2D", "UNetResCrossAttnUpBlock2D"])
    assert find_model(folder).architectures.denoiser == before


def require_same_states(folder: Path) -> None:
    """Our text states are those of PyTorch's pipeline, from the same captions."""
    theirs = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    ours = load_pipeline(folder)
    captions = ["a photo of a red cat", "", "the cup of a woman in space " * 9]
    tokens = ours.caption_inputs(captions)["tokens"]
    length = theirs.tokenizer.model_max_length
    expected = theirs.tokenizer(captions, padding="max_length", max_length=length, truncation=True).input_ids
    np.testing.assert_array_equal(tokens, expected)
    network = ours.networks["text_encoder"]
    difference = text_encoder_difference(theirs.text_encoder, network.config, network.params, tokens)
    assert difference.within, difference


def test_a_text_encoder_with_a_projection(folder: Path) -> None:
    path = folder / "text_encoder" / "model.safetensors"
    more = {"text_projection.weight": torch.zeros(16, 32), "vision_model.encoder.layers.0.mlp.fc1.bias": torch.ones(3)}
    save_file(load_file(path) | more, path, {"format": "pt"})
    require_same_states(folder)


def test_settings_under_text_config(folder: Path) -> None:
    path = folder / "text_encoder" / "config.json"
    inner = json.loads(path.read_text())
    inner.pop("num_hidden_layers")  # Transformers' default is 12
    path.write_text(json.dumps({"model_type": "clip", "text_config": inner | {"num_hidden_layers": 2}}))
    require_same_states(folder)


def test_a_config_with_fewer_layers_than_the_file(folder: Path) -> None:
    edit(folder / "text_encoder" / "config.json", num_hidden_layers=1)
    require_same_states(folder)


def test_a_caption_has_the_tokenizers_length(folder: Path) -> None:
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=16)
    require_same_states(folder)
    assert find_model(folder).architectures.configs["text_encoder"].max_length == 16
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=int(1e30))
    assert find_model(folder).architectures.configs["text_encoder"].max_length == 77
    edit(folder / "tokenizer" / "tokenizer_config.json", model_max_length=78)
    with pytest.raises(InputError, match=r"tokenizer_config\.json: model_max_length is 78; .*77"):
        find_model(folder)


@pytest.mark.parametrize(
    ("change", "what"),
    [({"in_channels": 9}, "inpainting"), ({"in_channels": 5}, "depth"), ({"in_channels": 8}, "Pix2Pix")],
)
def test_other_models_are_refused_by_name(folder: Path, change: dict[str, Any], what: str) -> None:
    edit(folder / "unet" / "config.json", **change)
    with pytest.raises(InputError, match=rf"model: .*{what}"):
        find_model(folder)
