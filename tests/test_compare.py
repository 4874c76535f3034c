"""The comparison with PyTorch: small pipelines in every form, and the networks of Stable Diffusion at full size."""

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from bksdm_jax.formats.clip_json import clip_text_from_transformers
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.formats.weights import read_weights
from bksdm_jax.interop.components import (
    decoder_difference,
    difference,
    encoder_difference,
    text_encoder_difference,
    unet_difference,
)
from bksdm_jax.interop.parity import CompareConfig, difference_table
from bksdm_jax.models.clip import clip_text_parameter_shapes
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.models.vae import VAEConfig, vae_parameter_shapes
from bksdm_jax.pipelines.stable_diffusion import TEACHERS, TEXT_ENCODERS


def test_pytorchs_folder_agrees(torch_teacher: Path, tmp_path: Path) -> None:
    config = CompareConfig(str(torch_teacher), prompts=("a cat", "the red rocket"), steps=4)
    found = parity(config, tmp_path / "out")
    assert [one.what for one in found] == ["text encoder", "U-Net", "VAE decoder", "VAE encoder", "image (levels)"]
    assert all(one.within for one in found), difference_table(found)
    written = json.loads((tmp_path / "out" / "differences.json").read_text())
    assert [row["largest"] for row in written] == [one.largest for one in found]
    assert Image.open(tmp_path / "out" / "images.png").size == (4 + 2 * 68, 4 + 2 * 68)


def test_a_flax_folder_is_converted_for_pytorch(flax_teacher: Path, tmp_path: Path) -> None:
    found = parity(CompareConfig(str(flax_teacher), steps=0), tmp_path / "out")
    assert len(found) == 4
    assert all(one.within for one in found), difference_table(found)
    assert not (tmp_path / "out" / "images.png").exists()


def test_a_difference_is_seen() -> None:
    theirs = np.array([[1.0, -2.0]], np.float32)
    one = difference("x", theirs + np.array([[0.0, 3e-4]], np.float32), theirs)
    assert (one.largest, one.scale) == (pytest.approx(3e-4, rel=1e-3), 2.0)
    assert not one.within
    assert not difference("x", np.full((1, 2), np.nan), theirs).within
    assert "BEYOND" in difference_table([one])
    with pytest.raises(ValueError, match="shapes"):
        difference("x", theirs[0], theirs)


def stored(module: torch.nn.Module, folder: Path, shapes: Any) -> Any:
    """The module's weights, through its own safetensors."""
    module.save_pretrained(folder)
    (path,) = folder.glob("*.safetensors")
    params = read_weights([path], shapes)
    path.unlink()
    return params


@pytest.mark.parametrize(
    ("generation", "size"),
    [("v1", 32), *(pytest.param(generation, 64, marks=pytest.mark.slow) for generation in TEACHERS)],
)
def test_a_full_size_unet_matches_pytorch(tmp_path: Path, generation: str, size: int) -> None:
    generator = np.random.default_rng()
    with torch.no_grad():
        module = UNet2DConditionModel(**TEACHERS[generation]).eval()
    config = unet_from_diffusers(TEACHERS[generation])
    params = jax.device_put(stored(module, tmp_path, parameter_shapes(config)))
    latents = generator.standard_normal((1, size, size, 4), np.float32)
    context = generator.standard_normal((1, 77, config.context_width), np.float32)
    one = unet_difference(module, config, params, latents, np.array([500], np.int32), context)
    assert one.within, one


@pytest.mark.slow
def test_a_full_size_autoencoder_matches_pytorch(tmp_path: Path) -> None:
    generator = np.random.default_rng()
    module = AutoencoderKL(
        block_out_channels=(128, 256, 512, 512),
        down_block_types=("DownEncoderBlock2D",) * 4,
        up_block_types=("UpDecoderBlock2D",) * 4,
        layers_per_block=2,
    ).eval()
    params = stored(module, tmp_path, vae_parameter_shapes(VAEConfig()))
    latents = generator.standard_normal((1, 64, 64, 4), np.float32)
    images = generator.uniform(-1, 1, (1, 256, 256, 3)).astype(np.float32)
    for one in (
        decoder_difference(module, VAEConfig(), params, latents),
        encoder_difference(module, VAEConfig(), params, images),
    ):
        assert one.within, one


@pytest.mark.slow
@pytest.mark.parametrize("generation", TEXT_ENCODERS)
def test_a_full_size_text_encoder_matches_pytorch(tmp_path: Path, generation: str) -> None:
    module = CLIPTextModel(CLIPTextConfig(**TEXT_ENCODERS[generation])).eval()
    config = clip_text_from_transformers(TEXT_ENCODERS[generation])
    params = stored(module, tmp_path, clip_text_parameter_shapes(config))
    tokens = np.random.default_rng().integers(0, config.vocab_size, (2, 77), np.int32)
    one = text_encoder_difference(module, config, params, tokens)
    assert one.within, one
