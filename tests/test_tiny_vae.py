"""TAESD: against PyTorch Diffusers, and in the original's own files."""

from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import AutoencoderTiny
from safetensors.torch import save_file
from torch import nn

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.tiny_vae_json import tiny_vae_from_diffusers, tiny_vae_to_diffusers
from bksdm_jax.models.tiny_vae import TinyVAE, TinyVAEConfig, tiny_vae_parameter_shapes
from bksdm_jax.models.vae import sample_latents
from bksdm_jax.pipelines.autoencoder import load_autoencoder
from bksdm_jax.pipelines.pipeline import Network
from tests import tiny
from tests.arrays import require_close, require_equal

SMALL = {
    "encoder_block_out_channels": (8, 8, 8),
    "decoder_block_out_channels": (16, 16, 16),
    "num_encoder_blocks": (1, 2, 0),
    "num_decoder_blocks": (2, 1, 1),
    "latent_channels": 5,
    "scaling_factor": 0.7,
}


def decoded(network: Network, latents: np.ndarray) -> np.ndarray:
    return np.asarray(TinyVAE(network.config).apply({"params": network.params}, latents, method="decode"))


def encoded(network: Network, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return TinyVAE(network.config).apply({"params": network.params}, images, method="encode")


def drawn(*shape: int) -> np.ndarray:
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def to_torch(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(array.transpose(0, 3, 1, 2))


def to_numpy(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy().transpose(0, 2, 3, 1)


@pytest.mark.parametrize("form", ["safetensors", "bin", "pipeline"])
def test_both_halves_match_pytorch(tmp_path: Path, form: str) -> None:
    theirs = tiny.randomize(AutoencoderTiny(**SMALL), 0)
    folder = tmp_path / "vae" if form == "pipeline" else tmp_path
    theirs.save_pretrained(folder, safe_serialization=form != "bin")
    ours = load_autoencoder(str(tmp_path))
    assert (ours.config.factor, ours.config.latent_channels, ours.config.scaling_factor) == (4, 5, 0.7)
    latents, images = 4 * drawn(2, 3, 4, 5), drawn(2, 12, 16, 3)
    require_close(decoded(ours, latents), to_numpy(theirs.decode(to_torch(latents)).sample))
    mean, log_variance = encoded(ours, images)
    require_close(mean, to_numpy(theirs.encode(to_torch(images)).latents))
    for noise in (jnp.full(mean.shape, 5.0), jnp.zeros(mean.shape)):
        np.testing.assert_array_equal(sample_latents(mean, log_variance, noise, 0.5), mean * np.float32(0.5))


@pytest.mark.slow
def test_half_precision_is_close() -> None:
    module, latents = TinyVAE(TinyVAEConfig(encoder_width=8, decoder_width=8), jnp.bfloat16), drawn(1, 4, 4, 4)
    params = tiny.random_tree(tiny_vae_parameter_shapes(module.config), 0)
    found = module.apply({"params": params}, latents, method="decode")
    assert found.dtype == jnp.bfloat16
    require_close(found.astype(jnp.float32), decoded(Network(module.config, params, {}), latents), 0.05)


def test_configs_are_those_of_diffusers() -> None:
    for options in (SMALL, {}):
        config = tiny_vae_from_diffusers(dict(AutoencoderTiny(**options).config))
        assert (
            tiny_vae_from_diffusers(dict(AutoencoderTiny.from_config(tiny_vae_to_diffusers(config)).config)) == config
        )
    assert config == TinyVAEConfig()


class Block(nn.Module):
    """A residual block under TAESD's names."""

    def __init__(self) -> None:
        super().__init__()
        convolutions = [nn.Conv2d(64, 64, 3, padding=1) for _ in range(3)]
        self.conv = nn.Sequential(convolutions[0], nn.ReLU(), convolutions[1], nn.ReLU(), convolutions[2])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.relu(self.conv(x) + x)


class Clamp(nn.Module):
    """The decoder's first layer, without weights."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.tanh(x / 3) * 3


def half(name: str) -> nn.Sequential:
    """TAESD's encoder or decoder, in the order of its layers and thus with their numbers."""

    def blocks(count: int) -> list[nn.Module]:
        return [Block() for _ in range(count)]

    if name == "decoder":
        layers = [Clamp(), nn.Conv2d(4, 64, 3, padding=1), nn.ReLU()]
        for _ in range(3):
            layers += [*blocks(3), nn.Upsample(scale_factor=2), nn.Conv2d(64, 64, 3, padding=1, bias=False)]
        layers += [*blocks(1), nn.Conv2d(64, 3, 3, padding=1)]
    else:
        layers = [nn.Conv2d(3, 64, 3, padding=1), *blocks(1)]
        for _ in range(3):
            layers += [nn.Conv2d(64, 64, 3, padding=1, stride=2, bias=False), *blocks(3)]
        layers += [nn.Conv2d(64, 4, 3, padding=1)]
    return tiny.randomize(nn.Sequential(*layers), len(name) + ord(name[0]))


def test_its_own_files_are_read(tmp_path: Path) -> None:
    halves = {name: half(name) for name in ("encoder", "decoder")}
    for name, module in halves.items():
        save_file(module.state_dict(), tmp_path / f"taesd_{name}.safetensors")
        torch.save(module.state_dict(), tmp_path / f"taesd_{name}.pth")
    ours = load_autoencoder(str(tmp_path / "taesd_decoder.safetensors"))
    latents, images = drawn(1, 2, 2, 4), drawn(1, 16, 16, 3)
    require_close(decoded(ours, latents), 2 * to_numpy(halves["decoder"](to_torch(latents))) - 1)
    require_close(encoded(ours, images)[0], to_numpy(halves["encoder"](to_torch((images + 1) / 2))))
    for other in ("taesd_encoder.safetensors", "taesd_decoder.pth"):
        require_equal(load_autoencoder(str(tmp_path / other)).params, ours.params)
    theirs = AutoencoderTiny.from_config(ours.json)
    theirs.encoder.layers.load_state_dict(halves["encoder"].state_dict())
    theirs.save_pretrained(tmp_path / "folder")
    again = load_autoencoder(str(tmp_path / "folder" / "diffusion_pytorch_model.safetensors"))
    require_equal(again.params["encoder"], ours.params["encoder"])
    (tmp_path / "taesd_encoder.pth").unlink()
    with pytest.raises(InputError, match=r"taesd_decoder\.pth: .*'encoder'"):
        load_autoencoder(str(tmp_path / "taesd_decoder.pth"))


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("act_fn", "silu"),
        ("upsampling_scaling_factor", 3),
        ("num_encoder_blocks", [1, 3]),
        ("num_encoder_blocks", [1] * 9),
        ("num_decoder_blocks", [3, 3, 3, 10**9]),
        ("num_decoder_blocks", "3331"),
        ("decoder_block_out_channels", [64, 64, 64, 32]),
        ("decoder_block_out_channels", [2**20] * 4),
        ("latent_channels", 0),
        ("scaling_factor", 0),
    ],
)
def test_other_configs_are_refused(key: str, value: Any) -> None:
    with pytest.raises(InputError, match=rf"here: .*{key}"):
        tiny_vae_from_diffusers({key: value}, "here")


def test_other_weights_are_refused(tmp_path: Path) -> None:
    theirs = AutoencoderTiny(**SMALL)
    theirs.save_pretrained(tmp_path)
    state = theirs.state_dict()

    def refused(said: str) -> None:
        save_file(state, tmp_path / "diffusion_pytorch_model.safetensors")
        with pytest.raises(InputError, match=said):
            load_autoencoder(str(tmp_path))

    bias = state.pop("decoder.layers.0.bias")
    refused(r"decoder: .*missing: layers\.0\.bias")
    state["decoder.layers.0.bias"] = torch.cat([bias, bias])
    refused(r"decoder: .*layers\.0\.bias is \(32,\), expected \(16,\)")
    state |= {"decoder.layers.0.bias": bias, "encoder.layers.1.skip.weight": bias.clone()}
    refused(r"encoder: .*unexpected: layers\.1\.skip\.weight")
