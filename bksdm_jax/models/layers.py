"""Convolutional blocks shared by the U-Net and the VAE.

Arrays are [B, H, W, C]; parameter names are those of Diffusers' Flax checkpoints.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bksdm_jax.models.convolution import convolve, convolve_doubled, rows_product
from bksdm_jax.models.norms import GroupNorm
from bksdm_jax.models.traced_once import traced_once


class Dense(nn.Dense):
    """A linear layer over the last dimension, computed by `rows_product`."""

    dot_general: Any = rows_product


def conv(
    features: int,
    size: int,
    name: str,
    dtype: jnp.dtype,
    stride: int = 1,
    padding: Any = None,
    bias: bool = True,
    compute: Callable[..., jax.Array] = convolve,
) -> nn.Conv:
    """A `size` x `size` convolution, by `compute`.

    `padding`, as `nn.Conv` takes it, defaults to `size // 2` on every side.
    """
    padding = size // 2 if padding is None else padding
    shape = (size, size), (stride, stride)
    options = {"padding": padding, "use_bias": bias, "dtype": dtype, "conv_general_dilated": compute}
    return nn.Conv(features, *shape, **options, name=name)


def timestep_embedding(timesteps: jax.Array, width: int, flip_sin_to_cos: bool, freq_shift: float) -> jax.Array:
    """Sinusoids (Vaswani et al. 2017, section 3.5), float32 [B, width], of timesteps [B] of any numeric dtype.

    `width` is even. The lowest frequency is 10000^(-(width/2 - 1) / (width/2 - freq_shift)); `flip_sin_to_cos` puts the
    cosines first.
    """
    half = width // 2
    exponent = -math.log(10000.0) * jnp.arange(half, dtype=jnp.float32) / (half - freq_shift)
    angles = timesteps.astype(jnp.float32)[:, None] * jnp.exp(exponent)[None, :]  # [B, width / 2]
    parts = [jnp.sin(angles), jnp.cos(angles)]
    return jnp.concatenate(parts[::-1] if flip_sin_to_cos else parts, axis=-1)


class TimestepMLP(nn.Module):
    """linear - SiLU - linear: sinusoids -> the embedding that conditions every residual block."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.silu(Dense(self.width, dtype=self.dtype, name="linear_1")(x))
        return Dense(self.width, dtype=self.dtype, name="linear_2")(x)


class ResnetBlock(nn.Module):
    """Two 3x3 convolutions with a shortcut; `temb` [B, T], if given, is projected and added between them."""

    width: int
    groups: int = 32
    epsilon: float = 1e-5
    dtype: jnp.dtype = jnp.float32
    norms: str = "xla"

    @traced_once
    @nn.compact
    def __call__(self, x: jax.Array, temb: jax.Array | None = None) -> jax.Array:
        def norm_silu(name: str) -> GroupNorm:
            return GroupNorm(self.groups, self.epsilon, silu=True, result=self.dtype, norms=self.norms, name=name)

        h = conv(self.width, 3, "conv1", self.dtype)(norm_silu("norm1")(x))
        if temb is not None:
            shift = Dense(self.width, dtype=self.dtype, name="time_emb_proj")(nn.silu(temb))
            h = h + shift[:, None, None, :]
        h = conv(self.width, 3, "conv2", self.dtype)(norm_silu("norm2")(h))
        if x.shape[-1] != self.width:
            x = conv(self.width, 1, "conv_shortcut", self.dtype)(x)
        return x + h  # [B, H, W, width]


def interpolate_channels(x: jax.Array, width: int) -> jax.Array:
    """[B, H, W, C] -> [B, H, W, width] by linear interpolation along the channels, with half-pixel centres.

    Output channel i lies at (i + 1/2) C / width - 1/2 among the C input channels, clipped to [0, C - 1].
    """
    channels = x.shape[-1]
    if channels == width:
        return x
    at = np.clip((np.arange(width) + 0.5) * (channels / width) - 0.5, 0, channels - 1)
    low = at.astype(int)
    share = jnp.asarray(at - low, x.dtype)
    return x[..., low] * (1 - share) + x[..., np.minimum(low + 1, channels - 1)] * share


class Interpolation(nn.Module):
    """`interpolate_channels` in place of a residual block; it has no weights."""

    width: int
    dtype: jnp.dtype = jnp.float32

    def __call__(self, x: jax.Array) -> jax.Array:
        return interpolate_channels(x.astype(self.dtype), self.width)


class Downsample(nn.Module):
    """Halves height and width with a strided convolution; odd ones are rounded up if `symmetric`, else down.

    `symmetric` pads one pixel on every side (U-Net), otherwise one at the bottom and one at the right (VAE).
    """

    width: int
    symmetric: bool = True
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        pad = ((1, 1), (1, 1)) if self.symmetric else ((0, 1), (0, 1))
        return conv(self.width, 3, "conv", self.dtype, stride=2, padding=pad)(x)


class Upsample(nn.Module):
    """Doubles height and width by repeating pixels, then a 3x3 convolution.

    `size`, if given, is the height and width of the result, each the double or one less: an odd size is halved to one
    rounded up. Then PyTorch's nearest neighbour of pixel i, floor(i n / (2n - 1)), is floor(i / 2) as for the double.
    """

    width: int
    dtype: jnp.dtype = jnp.float32
    size: tuple[int, int] | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        doubled = tuple(2 * n for n in x.shape[1:3])
        height, width = self.size or doubled
        if (height, width) == doubled:
            return conv(self.width, 3, "conv", self.dtype, compute=convolve_doubled)(x)
        x = x.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]  # [B, height, width, C]
        return conv(self.width, 3, "conv", self.dtype)(x)
