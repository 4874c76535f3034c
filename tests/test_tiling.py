"""Decoding in slices and tiles against PyTorch's, with the same random weights."""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL

from bksdm_jax.formats.vae_json import vae_from_diffusers
from bksdm_jax.models.tiling import decode_in_slices, decode_in_tiles
from bksdm_jax.models.vae import VAE, vae_parameter_shapes
from tests import tiny
from tests.arrays import require_close

TILE = 8  # latent positions


@pytest.fixture(scope="module")
def module() -> AutoencoderKL:
    options = tiny.MICRO_VAE | {"norm_num_groups": 8}  # one channel to a group has little to norm in a narrow tile
    return tiny.randomize(AutoencoderKL(**options), int(np.random.default_rng().integers(2**31)))


def decoder(module: AutoencoderKL) -> Any:
    config = vae_from_diffusers(module.config)
    variables = {"params": tiny.flax_params(module, vae_parameter_shapes(config))}
    return functools.partial(VAE(config).apply, variables, method="decode")


def latents_of(*shape: int) -> np.ndarray:
    return np.random.default_rng().standard_normal((*shape, 4), np.float32)


def torch_decode(module: AutoencoderKL, latents: np.ndarray) -> np.ndarray:
    with torch.inference_mode():
        return module.decode(torch.from_numpy(latents.transpose(0, 3, 1, 2))).sample.numpy().transpose(0, 2, 3, 1)


@pytest.mark.slow
def test_slices_are_the_whole(module: AutoencoderKL) -> None:
    latents = latents_of(3, 5, 8)
    decode = decoder(module)
    ours = jax.jit(functools.partial(decode_in_slices, decode))(latents)
    require_close(ours, np.asarray(decode(latents)), 1e-5)
    module.enable_slicing()
    require_close(ours, torch_decode(module, latents))
    module.disable_slicing()


@pytest.mark.parametrize(
    ("height", "width"),
    [(8, 8), (20, 15), *(pytest.param(*size, marks=pytest.mark.slow) for size in ((7, 27), (33, 16)))],
)
def test_tiles_match_pytorch(module: AutoencoderKL, height: int, width: int) -> None:
    latents = latents_of(2, height, width)
    decode = decoder(module)
    ours = jax.jit(functools.partial(decode_in_tiles, decode, tile=TILE))(latents)
    module.enable_tiling()
    assert module.tile_latent_min_size == TILE
    expected = torch_decode(module, latents)
    module.disable_tiling()
    require_close(ours, expected)
    plain = torch_decode(module, latents)
    assert (np.abs(plain - expected).max() > 1e-3) == (max(height, width) > TILE)


@pytest.mark.slow
def test_parts_take_less_memory(module: AutoencoderKL) -> None:
    decode = decoder(module)
    latents = jnp.zeros((2, 32, 32, 4))

    def temporary(decode: Any) -> int:
        return jax.jit(decode).lower(latents).compile().memory_analysis().temp_size_in_bytes

    in_slices = functools.partial(decode_in_slices, decode)
    both = functools.partial(decode_in_slices, functools.partial(decode_in_tiles, decode, tile=TILE))
    assert temporary(both) < temporary(in_slices) < temporary(decode)


@pytest.mark.parametrize("tile", [0, -4, 6])
def test_tiles_that_do_not_divide_are_refused(tile: int) -> None:
    with pytest.raises(ValueError, match=f"{tile} latent"):
        decode_in_tiles(lambda latents: latents, latents_of(1, 16, 16), tile)
