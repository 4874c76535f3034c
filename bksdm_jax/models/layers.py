"""Convolutional blocks shared by the U-Net and the VAE.

Arrays are [B, H, W, C]; parameter names are those of Diffusers' Flax checkpoints.
"""

import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bksdm_jax.models.norms import GroupNorm


def rows_product(lhs: jax.Array, rhs: jax.Array, *_: Any, **options: Any) -> jax.Array:
    """[..., K] times [K, N] -> [..., N], as `lax.dot_general` with the leading dimensions flattened to one.

    With several leading dimensions, XLA's CPU backend copies a transposed operand for the gradient of `rhs`, which
    takes longer than the product: both gradients of [32, 64, 64] x [64, 512] took 2.6 times as long (two cores).
    Dimension numbers are ignored, since they are always these; `options` are the other arguments of `lax.dot_general`.
    """
    rows = jax.lax.dot_general(lhs.reshape(-1, lhs.shape[-1]), rhs, (((1,), (0,)), ((), ())), **options)
    return rows.reshape(*lhs.shape[:-1], rhs.shape[-1])


class Dense(nn.Dense):
    """A linear layer over the last dimension, computed by `rows_product`."""

    dot_general: Any = rows_product


_SMALL_MAP = 16 * 16  # up to this many pixels a CPU convolves faster by a matrix product


def convolve(lhs: jax.Array, rhs: jax.Array, strides: Sequence[int], padding: Any, **options: Any) -> jax.Array:
    """`lax.conv_general_dilated` in NHWC; on CPUs small maps are convolved by one matrix product over patches (im2col).

    On maps of 2x2 to 8x8 pixels XLA's CPU convolution and its gradients reach 6 to 60 GFLOP/s, the product 50 to 90
    (two cores). `lhs` is [B, H, W, C], `rhs` [h, w, C, D]; `padding` counts pixels before and after, by dimension.
    """

    def plain(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(lhs, rhs, strides, padding, **options)

    def patches(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        x = jnp.pad(lhs, ((0, 0), *padding, (0, 0)))
        rows, columns = ((x.shape[i + 1] - rhs.shape[i]) // strides[i] + 1 for i in (0, 1))
        parts = [
            x[:, i : i + (rows - 1) * strides[0] + 1 : strides[0], j : j + (columns - 1) * strides[1] + 1 : strides[1]]
            for i in range(rhs.shape[0])
            for j in range(rhs.shape[1])
        ]
        return rows_product(jnp.concatenate(parts, axis=-1), rhs.reshape(-1, rhs.shape[-1]))

    dilated = any(step != 1 for key in ("lhs_dilation", "rhs_dilation") for step in options.get(key) or ())
    grouped = options.get("feature_group_count", 1) > 1
    if dilated or grouped or lhs.shape[1] * lhs.shape[2] > _SMALL_MAP:
        return plain(lhs, rhs)
    return jax.lax.platform_dependent(lhs, rhs, cpu=patches, default=plain)


def conv(
    features: int, size: int, name: str, dtype: jnp.dtype, stride: int = 1, padding: Any = None, bias: bool = True
) -> nn.Conv:
    """A `size` x `size` convolution; `padding`, as `nn.Conv` takes it, defaults to `size // 2` on every side."""
    padding = size // 2 if padding is None else padding
    shape = (size, size), (stride, stride)
    options = {"padding": padding, "use_bias": bias, "dtype": dtype, "conv_general_dilated": convolve}
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
        height, width = self.size or (2 * n for n in x.shape[1:3])
        x = x.repeat(2, axis=1).repeat(2, axis=2)[:, :height, :width]  # [B, height, width, C]
        return conv(self.width, 3, "conv", self.dtype)(x)
