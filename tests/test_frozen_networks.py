"""VAE and CLIP text encoder against PyTorch, with the same random weights."""

import jax
import numpy as np
import pytest
import torch
from diffusers import AutoencoderKL
from transformers import CLIPTextConfig

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.clip_json import clip_text_from_transformers
from bksdm_jax.formats.vae_json import vae_from_diffusers
from bksdm_jax.models.clip import CLIPTextEncoder, clip_text_parameter_shapes
from bksdm_jax.models.vae import VAE, sample_latents, vae_parameter_shapes
from tests import tiny
from tests.arrays import require_close

OTHER_VAE = {
    "block_out_channels": (16, 32, 64),
    "norm_num_groups": 8,
    "down_block_types": ("DownEncoderBlock2D",) * 3,
    "up_block_types": ("UpDecoderBlock2D",) * 3,
    "layers_per_block": 2,
}


@pytest.mark.parametrize(
    ("options", "size"),
    [(tiny.MICRO_VAE, (32, 32)), (OTHER_VAE, (32, 32)), (OTHER_VAE, (36, 21))],
    ids=["two stages", "three stages", "odd size"],
)
def test_vae_matches_pytorch(options: dict, size: tuple[int, int]) -> None:
    module = tiny.randomize(AutoencoderKL(**options), int(np.random.default_rng().integers(2**31)))
    config = vae_from_diffusers(module.config)
    variables = {"params": tiny.flax_params(module, vae_parameter_shapes(config))}
    generator = np.random.default_rng()
    images = generator.uniform(-1, 1, (2, *size, 3)).astype(np.float32)
    mean, log_variance = jax.jit(lambda v, x: VAE(config).apply(v, x, method="encode"))(variables, images)
    with torch.inference_mode():
        theirs = module.encode(torch.from_numpy(images.transpose(0, 3, 1, 2))).latent_dist
    require_close(mean, theirs.mean.numpy().transpose(0, 2, 3, 1))
    require_close(log_variance, theirs.logvar.numpy().transpose(0, 2, 3, 1))
    noise = generator.standard_normal(mean.shape, np.float32)
    drawn = sample_latents(mean, log_variance, noise, config.scaling_factor)
    expected = theirs.mean + theirs.std * torch.from_numpy(noise.transpose(0, 3, 1, 2))
    require_close(drawn, (0.18215 * expected).numpy().transpose(0, 2, 3, 1))

    latents = generator.standard_normal(mean.shape, np.float32)
    ours = jax.jit(lambda v, z: VAE(config).apply(v, z, method="decode"))(variables, latents)
    with torch.inference_mode():
        decoded = module.decode(torch.from_numpy(latents.transpose(0, 3, 1, 2))).sample
    require_close(ours, decoded.numpy().transpose(0, 2, 3, 1))


@pytest.mark.parametrize(("activation", "layers"), [("quick_gelu", 2), ("gelu", 3)])
def test_clip_text_matches_pytorch(activation: str, layers: int) -> None:
    module = tiny.text_encoder(int(np.random.default_rng().integers(2**31)), activation, layers)
    config = clip_text_from_transformers(module.config.to_dict())
    params = tiny.flax_params(module, clip_text_parameter_shapes(config))
    tokens = np.random.default_rng().integers(0, 600, (3, 77), np.int32)
    ours = jax.jit(CLIPTextEncoder(config).apply)({"params": params}, tokens)
    with torch.inference_mode():
        theirs = module(torch.from_numpy(tokens).long()).last_hidden_state.numpy()
    require_close(ours, theirs)


@pytest.mark.parametrize(
    ("change", "facts"),
    [
        ({"down_block_types": ("AttnDownEncoderBlock2D",) * 4}, ["down_block_types", "AttnDownEncoderBlock2D"]),
        ({"layers_per_block": "2"}, ["layers_per_block", "'2'"]),
        ({"shift_factor": 0.1}, ["shift_factor", "0.1"]),
        ({"block_out_channels": (30, 32, 64, 64)}, ["block_out_channels", "30", "32"]),
    ],
)
def test_other_vaes_are_refused(change: dict, facts: list[str]) -> None:
    with pytest.raises(InputError) as error:
        vae_from_diffusers(tiny.VAE | change, "vae/config.json")
    assert str(error.value).startswith("vae/config.json: ")
    for fact in facts:
        assert fact in str(error.value)


def test_other_text_encoders_are_refused() -> None:
    json = tiny.text_encoder().config.to_dict()
    with pytest.raises(InputError, match="hidden_act"):
        clip_text_from_transformers(json | {"hidden_act": "relu"})
    with pytest.raises(InputError, match=r"vocab_size.*None"):
        clip_text_from_transformers(json | {"vocab_size": None})


@pytest.mark.parametrize(
    "key", ["vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "hidden_act"]
)
def test_missing_settings_of_text_encoders_are_transformers_defaults(key: str) -> None:
    json = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4}
    json |= {"vocab_size": 600, "hidden_act": "gelu", "max_position_embeddings": 33}
    del json[key]
    assert clip_text_from_transformers(json) == clip_text_from_transformers(CLIPTextConfig(**json).to_dict())
