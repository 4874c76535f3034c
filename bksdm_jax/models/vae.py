"""Stable Diffusion's variational autoencoder (Diffusers' `AutoencoderKL`)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bksdm_jax.models.abstract import parameter_shapes_of
from bksdm_jax.models.attend import attend
from bksdm_jax.models.layers import Dense, Downsample, ResnetBlock, Upsample, conv
from bksdm_jax.models.norms import GroupNorm

_EPSILON = 1e-6


@dataclasses.dataclass(frozen=True)
class VAEConfig:
    """The architecture. `scaling_factor` scales latents to about unit variance for diffusion."""

    layers_per_block: int = 2
    in_channels: int = 3
    out_channels: int = 3
    widths: tuple[int, ...] = (128, 256, 512, 512)
    latent_channels: int = 4
    norm_groups: int = 32
    scaling_factor: float = 0.18215

    @property
    def factor(self) -> int:
        """Pixels per latent position along each side."""
        return 2 ** (len(self.widths) - 1)


class VAEAttention(nn.Module):
    """Single-head self-attention over the pixels, added to its input."""

    groups: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, epsilon=_EPSILON, result=self.dtype, name="group_norm")(x)
        h = h.reshape(batch, height * width, channels)
        query, key, value = (Dense(channels, dtype=self.dtype, name=n)(h) for n in ("query", "key", "value"))
        h = Dense(channels, dtype=self.dtype, name="proj_attn")(attend(query, key, value, heads=1))
        return x + h.reshape(x.shape)


class VAEStage(nn.Module):
    """Residual blocks at one resolution, with attention after the first (`mid_block`) or a resampler at the end."""

    width: int
    layers: int
    groups: int
    dtype: jnp.dtype
    resampler: str | None = None
    attention: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for j in range(self.layers):
            x = ResnetBlock(self.width, self.groups, _EPSILON, self.dtype, name=f"resnets_{j}")(x)
            if self.attention and j == 0:
                x = VAEAttention(self.groups, self.dtype, name="attentions_0")(x)
        if self.resampler == "down":
            x = Downsample(self.width, symmetric=False, dtype=self.dtype, name="downsamplers_0")(x)
        elif self.resampler == "up":
            x = Upsample(self.width, dtype=self.dtype, name="upsamplers_0")(x)
        return x


class Coder(nn.Module):
    """The encoder (`side` "down") or decoder ("up"): a 3x3 convolution, the stages and mid block, a 3x3 convolution."""

    config: VAEConfig
    side: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg, down = self.config, self.side == "down"
        widths = cfg.widths if down else cfg.widths[::-1]
        x = conv(widths[0], 3, "conv_in", self.dtype)(x)
        mid = VAEStage(cfg.widths[-1], 2, cfg.norm_groups, self.dtype, attention=True, name="mid_block")
        x = x if down else mid(x)
        for i, width in enumerate(widths):
            resampler = self.side if i < len(widths) - 1 else None
            layers = cfg.layers_per_block + (0 if down else 1)
            name = f"{self.side}_blocks_{i}"
            x = VAEStage(width, layers, cfg.norm_groups, self.dtype, resampler, name=name)(x)
        x = mid(x) if down else x
        x = GroupNorm(cfg.norm_groups, _EPSILON, silu=True, result=self.dtype, name="conv_norm_out")(x)
        channels = 2 * cfg.latent_channels if down else cfg.out_channels
        return conv(channels, 3, "conv_out", self.dtype)(x)


class VAE(nn.Module):
    """Encoder and decoder. Use as `vae.apply(variables, images, method="encode")`."""

    config: VAEConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.encoder = Coder(self.config, "down", self.dtype)
        self.decoder = Coder(self.config, "up", self.dtype)
        self.quant_conv = nn.Conv(2 * self.config.latent_channels, (1, 1), dtype=self.dtype)
        self.post_quant_conv = nn.Conv(self.config.latent_channels, (1, 1), dtype=self.dtype)

    def __call__(self, images: jax.Array) -> jax.Array:
        """Images to latent means and back; for initialisation."""
        return self.decode(self.encode(images)[0])

    def encode(self, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """[B, H, W, 3] in [-1, 1] -> mean and log-variance (clipped to [-30, 20]), each [B, H/f, W/f, C], unscaled."""
        moments = self.quant_conv(self.encoder(images.astype(self.dtype)))
        mean, log_variance = jnp.split(moments, 2, axis=-1)
        return mean, jnp.clip(log_variance, -30.0, 20.0)

    def decode(self, latents: jax.Array) -> jax.Array:
        """Unscaled latents [B, H/f, W/f, C] -> images [B, H, W, 3], nominally in [-1, 1]."""
        return self.decoder(self.post_quant_conv(latents.astype(self.dtype)))


def sample_latents(mean: jax.Array, log_variance: jax.Array, noise: jax.Array, scaling: float) -> jax.Array:
    """Scaled latents drawn from the encoder's distribution, float32 [B, h, w, C]; `noise` is standard normal."""
    mean, log_variance = mean.astype(jnp.float32), log_variance.astype(jnp.float32)
    return (mean + jnp.exp(0.5 * log_variance) * noise) * scaling


def vae_parameter_shapes(config: VAEConfig) -> dict[str, Any]:
    """The parameters as nested `jax.ShapeDtypeStruct`."""
    images = jax.ShapeDtypeStruct((1, config.factor, config.factor, config.in_channels), jnp.float32)
    return parameter_shapes_of(VAE(config), images)
