"""The tiny autoencoder TAESD (Diffusers' `AutoencoderTiny`), which maps between images and scaled latents."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bksdm_jax.models.abstract import parameter_shapes_of
from bksdm_jax.models.layers import conv

_CERTAIN = -200.0  # a log-variance: noise of deviation exp(-100) is lost beside any float32 mean


@dataclasses.dataclass(frozen=True)
class TinyVAEConfig:
    """The architecture. Defaults are TAESD's.

    Attributes:
        encoder_blocks, decoder_blocks: residual blocks of each stage, in the order of computation; one resolution each.
        encoder_width, decoder_width: channels of all stages.
        scaling_factor: from the autoencoder's latents to the scaled ones; TAESD's are scaled already.
    """

    encoder_blocks: tuple[int, ...] = (1, 3, 3, 3)
    decoder_blocks: tuple[int, ...] = (3, 3, 3, 1)
    encoder_width: int = 64
    decoder_width: int = 64
    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 4
    scaling_factor: float = 1.0

    @property
    def factor(self) -> int:
        """Pixels per latent position along each side."""
        return 2 ** (len(self.decoder_blocks) - 1)


class TinyBlock(nn.Module):
    """Three 3x3 convolutions with ReLU, added to the input, and ReLU."""

    width: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = nn.relu(conv(self.width, 3, "conv_0", self.dtype)(x))
        h = nn.relu(conv(self.width, 3, "conv_2", self.dtype)(h))
        return nn.relu(x + conv(self.width, 3, "conv_4", self.dtype)(h))


class TinyEncoder(nn.Module):
    """Images [B, H, W, C] in [-1, 1] -> latents [B, H/f, W/f, c]. Layers have the numbers of Diffusers' list."""

    config: TinyVAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, number = self.config, 0
        x = (x + 1) / 2
        for i, blocks in enumerate(cfg.encoder_blocks):
            first = i == 0
            x = conv(cfg.encoder_width, 3, f"layers_{number}", self.dtype, 1 if first else 2, bias=first)(x)
            for j in range(blocks):
                x = TinyBlock(cfg.encoder_width, self.dtype, name=f"layers_{number + 1 + j}")(x)
            number += 1 + blocks
        return conv(cfg.latent_channels, 3, f"layers_{number}", self.dtype)(x)


class TinyDecoder(nn.Module):
    """Latents [B, h, w, c] -> images [B, hf, wf, C], nominally in [-1, 1]. Layers have the numbers of Diffusers' list.

    ReLU and upsampling have numbers too.
    """

    config: TinyVAEConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, number = self.config, 2
        x = nn.relu(conv(cfg.decoder_width, 3, "layers_0", self.dtype)(jnp.tanh(x / 3) * 3))
        for i, blocks in enumerate(cfg.decoder_blocks):
            for j in range(blocks):
                x = TinyBlock(cfg.decoder_width, self.dtype, name=f"layers_{number + j}")(x)
            number += blocks
            if i == len(cfg.decoder_blocks) - 1:
                break
            x = x.repeat(2, axis=1).repeat(2, axis=2)
            x = conv(cfg.decoder_width, 3, f"layers_{number + 1}", self.dtype, bias=False)(x)
            number += 2
        return conv(cfg.out_channels, 3, f"layers_{number}", self.dtype)(x) * 2 - 1


class TinyVAE(nn.Module):
    """Encoder and decoder. Use as `vae.apply(variables, images, method="encode")`."""

    config: TinyVAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.encoder = TinyEncoder(self.config, self.dtype)
        self.decoder = TinyDecoder(self.config, self.dtype)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images to latents and back; for initialisation."""
        return self.decode(self.encode(images)[0])

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images [B, H, W, 3] in [-1, 1] -> latents [B, H/f, W/f, C], and a log-variance that leaves no noise."""
        mean = self.encoder(images.astype(self.dtype))
        return mean, jnp.full_like(mean, _CERTAIN)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Latents [B, H/f, W/f, C] -> images [B, H, W, 3], nominally in [-1, 1]."""
        return self.decoder(latents.astype(self.dtype))


def tiny_vae_parameter_shapes(config: TinyVAEConfig) -> dict[str, Any]:
    """The parameters as nested `jax.ShapeDtypeStruct`."""
    images = jax.ShapeDtypeStruct((1, config.factor, config.factor, config.in_channels), jnp.float32)
    return parameter_shapes_of(TinyVAE(config), images)
