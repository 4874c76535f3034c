"""The comparison with PyTorch: small pipelines in every form, and the networks of Stable Diffusion at full size."""

import dataclasses
import json
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL, Transformer2DModel, UNet2DConditionModel
from diffusers.models.resnet import ResnetBlock2D
from flax import linen as nn
from PIL import Image
from transformers import CLIPTextConfig, CLIPTextModel

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.clip_json import clip_text_to_transformers
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.formats.weights import read_weights
from bksdm_jax.interop.components import (
    decoder_difference,
    difference,
    encoder_difference,
    text_encoder_difference,
    unet_difference,
)
from bksdm_jax.interop.parity import CompareConfig, difference_table, parity
from bksdm_jax.models.attention import SpatialTransformer
from bksdm_jax.models.clip import clip_text_parameter_shapes
from bksdm_jax.models.layers import ResnetBlock
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.models.vae import VAEConfig, vae_parameter_shapes
from bksdm_jax.pipelines.stable_diffusion import TEACHERS, TEXT_ENCODERS
from tests import tiny
from tests.arrays import require_close


@pytest.mark.slow
def test_pytorchs_folder_agrees(tmp_path: Path) -> None:
    """Its networks have the shapes of the Flax folder's below, which so finds its programs compiled."""
    options = {key: value for key, value in tiny.PICO.items() if key != "norm_num_groups"}
    folder = tiny.write_torch_pipeline(tmp_path / "torch", options, vae=tiny.MICRO_VAE)
    config = CompareConfig(str(folder), prompts=("a cat", "the red rocket"), steps=4)
    found = parity(config, tmp_path / "out")
    assert [one.what for one in found] == ["text encoder", "U-Net", "VAE decoder", "VAE encoder", "image (levels)"]
    assert all(one.within for one in found), difference_table(found)
    written = json.loads((tmp_path / "out" / "differences.json").read_text())
    assert [row["largest"] for row in written] == [one.largest for one in found]
    assert Image.open(tmp_path / "out" / "images.png").size == (4 + 2 * 20, 4 + 2 * 20)


def test_a_flax_folder_is_converted_for_pytorch(pico_teacher: Path, tmp_path: Path) -> None:
    found = parity(CompareConfig(str(pico_teacher), prompts=("a cat", "the red rocket"), steps=0), tmp_path / "out")
    assert len(found) == 4
    assert all(one.within for one in found), difference_table(found)
    assert not (tmp_path / "out" / "images.png").exists()


@pytest.mark.parametrize("sampler", [pytest.param("scheduler", marks=pytest.mark.slow), "dpmpp_2m_karras"])
def test_a_named_sampler_is_the_models_own_or_made_from_it(tmp_path: Path, sampler: str) -> None:
    """A DDIM file that leaves open what the pipeline sets, and Diffusers' class doesn't have by default."""
    options = {key: value for key, value in tiny.PICO.items() if key != "norm_num_groups"}
    folder = tiny.write_torch_pipeline(tmp_path / "torch", options, vae=tiny.MICRO_VAE)
    file = {"_class_name": "DDIMScheduler", **tiny.SD_BETAS}
    (folder / "scheduler" / "scheduler_config.json").write_text(json.dumps(file))
    index = json.loads((folder / "model_index.json").read_text()) | {"scheduler": ["diffusers", "DDIMScheduler"]}
    (folder / "model_index.json").write_text(json.dumps(index))
    config = CompareConfig(str(folder), prompts=("a cat", "the red rocket"), steps=4, sampler=sampler)
    found = parity(config, tmp_path / "out")
    assert found[-1].within, difference_table(found)


def test_a_scheduler_that_is_not_implemented_is_told(micro_torch_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(micro_torch_teacher, tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    (folder / "model_index.json").write_text(json.dumps(index | {"scheduler": ["diffusers", "LMSDiscreteScheduler"]}))
    with pytest.raises(InputError, match=r"sampler: .*dpmpp_2m"):
        parity(CompareConfig(str(folder)), tmp_path / "out")


def test_a_folder_that_pytorch_cannot_read_is_converted(micro_torch_teacher: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(micro_torch_teacher, tmp_path / "model")
    whole = folder / "unet" / "diffusion_pytorch_model.safetensors"
    module = UNet2DConditionModel.from_pretrained(folder / "unet")
    whole.unlink()
    module.save_pretrained(folder / "unet", safe_serialization=False, max_shard_size="60KB")
    found = parity(CompareConfig(str(folder), prompts=("a cat", "the red rocket"), steps=0), tmp_path / "out")
    assert all(one.within for one in found), difference_table(found)


def test_a_difference_is_seen() -> None:
    theirs = np.array([[1.0, -2.0]], np.float32)
    one = difference("x", theirs + np.array([[0.0, 3e-4]], np.float32), theirs)
    assert (one.largest, one.scale) == (pytest.approx(3e-4, rel=1e-3), 2.0)
    assert not one.within
    assert not difference("x", np.full((1, 2), np.nan), theirs).within
    assert difference_table([one]) != difference_table([dataclasses.replace(one, tolerance=1.0)])  # it says so
    with pytest.raises(ValueError, match="shapes"):
        difference("x", theirs[0], theirs)


def stored(module: torch.nn.Module, folder: Path, shapes: Any) -> Any:
    """The module's weights, through its own safetensors."""
    module.save_pretrained(folder)
    (path,) = folder.glob("*.safetensors")
    params = read_weights([path], shapes)
    path.unlink()
    return params


@pytest.mark.parametrize(("generation", "width", "heads"), [("v1", 320, 8), ("v1", 1280, 8), ("v2", 1280, 20)])
def test_a_transformer_of_real_width_matches_pytorch(generation: str, width: int, heads: int) -> None:
    linear = generation == "v2"
    context_width = TEACHERS[generation]["cross_attention_dim"]
    theirs = Transformer2DModel(
        heads, width // heads, width, cross_attention_dim=context_width, use_linear_projection=linear
    )
    x = np.random.default_rng().standard_normal((1, 8, 8, width), np.float32)
    context = np.random.default_rng().standard_normal((1, 77, context_width), np.float32)
    ours = SpatialTransformer(heads=heads, linear_projection=linear)
    with torch.inference_mode():
        (expected,) = theirs.eval()(channels_first(x), torch.from_numpy(context), return_dict=False)
    require_close(apply_torch(ours, theirs, x, context), channels_last(expected))


@pytest.mark.parametrize(("incoming", "width"), [(320, 320), (2560, 1280)])
def test_a_residual_block_of_real_width_matches_pytorch(incoming: int, width: int) -> None:
    theirs = ResnetBlock2D(in_channels=incoming, out_channels=width, temb_channels=1280, eps=1e-5)
    x = np.random.default_rng().standard_normal((1, 8, 8, incoming), np.float32)
    time = np.random.default_rng().standard_normal((1, 1280), np.float32)
    with torch.inference_mode():
        expected = theirs.eval()(channels_first(x), torch.from_numpy(time))
    require_close(apply_torch(ResnetBlock(width), theirs, x, time), channels_last(expected))


def channels_first(x: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def channels_last(x: torch.Tensor) -> np.ndarray:
    return x.numpy().transpose(0, 2, 3, 1)


def apply_torch(ours: nn.Module, theirs: torch.nn.Module, *inputs: np.ndarray) -> jax.Array:
    """Our module with the other's weights."""
    shapes = jax.eval_shape(ours.init, jax.random.key(0), *inputs)["params"]
    params = tiny.flax_params(theirs.requires_grad_(False), shapes)
    return ours.apply({"params": params}, *inputs)


@pytest.mark.slow
@pytest.mark.parametrize("generation", TEACHERS)
def test_a_full_size_unet_matches_pytorch(tmp_path: Path, generation: str) -> None:
    generator = np.random.default_rng()
    with torch.no_grad():
        module = UNet2DConditionModel(**TEACHERS[generation]).eval()
    config = unet_from_diffusers(TEACHERS[generation])
    params = jax.device_put(stored(module, tmp_path, parameter_shapes(config)))
    latents = generator.standard_normal((1, 64, 64, 4), np.float32)
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
    module = CLIPTextModel(CLIPTextConfig(**clip_text_to_transformers(TEXT_ENCODERS[generation]))).eval()
    config = TEXT_ENCODERS[generation]
    params = stored(module, tmp_path, clip_text_parameter_shapes(config))
    tokens = np.random.default_rng().integers(0, config.vocab_size, (2, 77), np.int32)
    one = text_encoder_difference(module, config, params, tokens)
    assert one.within, one
