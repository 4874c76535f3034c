"""Convolutional blocks shared by the U-Net and the VAE.

Arrays are [B, H, W, C]; parameter names are those of Diffusers' Flax checkpoints.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn


class GroupNorm(nn.GroupNorm):
    """Group normalisation in float32 with two-pass statistics, as PyTorch computes them; the result is in `result`."""

    use_fast_variance: bool = False
    dtype: jnp.dtype = jnp.float32
    result: jnp.dtype = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C]."""
        return super().__call__(x.astype(self.dtype)).astype(self.result)


class LayerNorm(nn.LayerNorm):
    """Layer normalisation, likewise."""

    use_fast_variance: bool = False
    dtype: jnp.dtype = jnp.float32
    result: jnp.dtype = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, N, C] -> [B, N, C]."""
        return super().__call__(x.astype(self.dtype)).astype(self.result)


def conv(features: int, size: int, name: str, dtype: jnp.dtype, stride: int = 1) -> nn.Conv:
    """A `size` x `size` convolution that pads by `size // 2` on every side."""
    return nn.Conv(features, (size, size), (stride, stride), padding=size // 2, dtype=dtype, name=name)


def timestep_embedding(timesteps: jax.Array, width: int, flip_sin_to_cos: bool, freq_shift: float) -> jax.Array:
    """Sinusoids of the timestep (Vaswani et al. 2017, section 3.5), in float32.

    Args:
        timesteps: [B], any number type.
        width: even.
        flip_sin_to_cos: cosines first.
        freq_shift: the lowest frequency is 10000^(-(width/2 - 1) / (width/2 - freq_shift)).

    Returns:
        float32 [B, width].
    """
    half = width // 2
    exponent = -math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    angles = timesteps.astype(jnp.float32)[:, None] * jnp.exp(exponent)[None, :]  # [B, width / 2]
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if flip_sin_to_cos else parts, axis=-1)


class TimestepMLP(nn.Module):
    """linear - SiLU - linear, from sinusoids to the vector that conditions every residual block."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.silu(nn.Dense(self.width, dtype=self.dtype, name="linear_1")(x))
        return nn.Dense(self.width, dtype=self.dtype, name="linear_2")(x)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; `temb` [B, T], where given, is projected and added between them."""

    width: int
    groups: int = 32
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None = None) -> jax.Array:
        h = GroupNorm(self.groups, epsilon=self.epsilon, result=self.dtype, name="norm1")(x)
        h = conv(self.width, 3, "conv1", self.dtype)(nn.silu(h))
        if temb is not None:
            shift = nn.Dense(self.width, dtype=self.dtype, name="time_emb_proj")(nn.silu(temb))
            h = h + shift[:, None, None, :]
        h = GroupNorm(self.groups, epsilon=self.epsilon, result=self.dtype, name="norm2")(h)
        h = conv(self.width, 3, "conv2", self.dtype)(nn.silu(h))
        if x.shape[-1] != self.width:
            x = conv(self.width, 1, "conv_shortcut", self.dtype)(x)
        return x + h  # [B, H, W, width]


class Downsample(nn.Module):
    """Halves height and width with a strided convolution.

    `symmetric` pads one pixel on every side (U-Net); otherwise one at the bottom and the right (VAE).
    """

    width: int
    symmetric: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        pad = ((1, 1), (1, 1)) if self.symmetric else ((0, 1), (0, 1))
        return nn.Conv(self.width, (3, 3), (2, 2), padding=pad, dtype=self.dtype, name="conv")(x)


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then a 3x3 convolution."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = x.repeat(2, axis=1).repeat(2, axis=2)  # [B, 2H, 2W, C]
        return conv(self.width, 3, "conv", self.dtype)(x)
