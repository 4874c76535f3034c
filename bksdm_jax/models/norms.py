"""Normalisation layers in float32, whose backward pass needs little memory.

Each layer gives its own gradient, so that of a call only its input, in the input's dtype, and two numbers for each set
of values that are normalised together are kept for the backward pass. Gradients derived automatically keep several
arrays of the input's size in float32.
"""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
from flax import linen as nn

from bksdm_jax.base.errors import InputError
from bksdm_jax.models import norm_kernels
from bksdm_jax.models.choices import require_norms_name
from bksdm_jax.models.devices import has_ampere, read_again


@dataclasses.dataclass(frozen=True)
class GroupNormOptions:
    """What `group_norm` computes.

    Attributes:
        groups: of channels.
        epsilon: added to the variance.
        silu: whether SiLU follows.
        result: dtype of the result.
        norms: who computes the sums over pixels, `xla` or `pallas`: `norm_kernels`, where they support the shapes. The
            result is the same but for rounding.
    """

    groups: int
    epsilon: float
    silu: bool = False
    result: jnp.dtype = jnp.float32
    norms: str = "xla"


@partial(jax.custom_vjp, nondiff_argnums=(0,))
def group_norm(options: GroupNormOptions, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Group normalisation (Wu and He 2018) with two-pass statistics, as PyTorch computes it, and perhaps SiLU.

    `x` is [B, H, W, C], `scale` and `bias` are [C]. The arithmetic is float32, and rounded to `options.result` once.
    """
    return _group_norm_forward(options, x, scale, bias)[0]


def _group_norm_forward(
    options: GroupNormOptions, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    pixels = _pixels(x)
    plain = partial(_moments, options.groups)
    moments = partial(norm_kernels.moments, plain, options.groups) if options.norms == "pallas" else plain
    mean, variance = moments(pixels)
    inverse = jax.lax.rsqrt(variance + options.epsilon)
    centred = _float32(pixels) - _to_channels(mean, x.shape[-1])
    out = centred * _to_channels(inverse, x.shape[-1]) * _float32(scale) + _float32(bias)
    out = nn.silu(out) if options.silu else out
    return out.reshape(x.shape).astype(options.result), (x, mean, inverse, scale, bias)


def _group_norm_backward(
    options: GroupNormOptions, saved: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """With h the normalised input, 1 / d the inverse deviation, g the gradient of h * scale + bias, means by group:

    dx = (g * scale - mean(g * scale) - h * mean(g * scale * h)) / d, dscale = sum(g * h), dbias = sum(g).
    """
    x, mean, inverse, scale, bias = saved
    x = read_again(x)
    pixels, factor, size = _pixels(x), _float32(scale), x[0].size // options.groups
    mean, inverse = (_to_channels(each, x.shape[-1]) for each in (mean, inverse))
    operands = pixels, _pixels(cotangent), mean, inverse, factor, _float32(bias)
    plain = partial(_sums, options.silu)
    sum_up = partial(norm_kernels.sums, plain, options.silu) if options.norms == "pallas" else plain
    sums = sum_up(*operands)  # [B, C]
    along, across = (
        _to_channels(_by_group(factor * each, options.groups).sum(axis=-1) / size, x.shape[-1]) for each in sums
    )
    normalised, gradient = _parts(options.silu, *operands)
    dx = inverse * (gradient * factor - along - normalised * across)
    dbias, dscale = (each.sum(axis=0) for each in sums)
    return dx.reshape(x.shape).astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


group_norm.defvjp(_group_norm_forward, _group_norm_backward)


def _moments(groups: int, pixels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Means and variances, float32 [B, G], of [B, P, C].

    Means are taken over the pixels of each channel, then over the channels of a group. On CPUs this is several times
    faster than both at once, since channels are contiguous in memory; `_sums` are by channel likewise.
    """
    pixels = _float32(pixels)
    mean = _by_group(pixels.mean(axis=1), groups).mean(axis=-1)
    centred = pixels - _to_channels(mean, pixels.shape[-1])
    return mean, _by_group(jnp.square(centred).mean(axis=1), groups).mean(axis=-1)


def _sums(silu: bool, *operands: jax.Array) -> tuple[jax.Array, jax.Array]:
    """What `norm_kernels.sums` computes."""
    normalised, gradient = _parts(silu, *operands)
    return gradient.sum(axis=1), (gradient * normalised).sum(axis=1)


def _parts(
    silu: bool,
    x: jax.Array,
    cotangent: jax.Array,
    mean: jax.Array,
    inverse: jax.Array,
    scale: jax.Array,
    bias: jax.Array,
) -> tuple[jax.Array, jax.Array]:
    """The normalised input, and the gradient before SiLU; shapes as of `norm_kernels.sums`."""
    normalised, gradient = (_float32(x) - mean) * inverse, _float32(cotangent)
    return normalised, gradient * norm_kernels.silu_slope(normalised * scale + bias) if silu else gradient


def _pixels(x: jax.Array) -> jax.Array:
    return x.reshape(x.shape[0], -1, x.shape[-1])  # [B, H, W, C] -> [B, H * W, C]


def _by_group(values: jax.Array, groups: int) -> jax.Array:
    return values.reshape(values.shape[0], groups, -1)  # [B, C] -> [B, G, C / G]


def _to_channels(values: jax.Array, channels: int) -> jax.Array:
    each = jnp.broadcast_to(values[..., None], (*values.shape, channels // values.shape[1]))
    return each.reshape(values.shape[0], 1, channels)  # [B, G] -> [B, 1, C]


def _float32(x: jax.Array) -> jax.Array:
    return x.astype(jnp.float32)


class GroupNorm(nn.Module):
    """`group_norm` as a layer."""

    groups: int
    epsilon: float
    silu: bool = False
    result: jnp.dtype = jnp.float32
    norms: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[B, H, W, C] -> [B, H, W, C] in `result`; C must be a multiple of `groups`."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32)
        options = GroupNormOptions(self.groups, self.epsilon, self.silu, self.result, self.norms)
        return group_norm(options, x, scale, bias)


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def layer_norm(epsilon: float, result: jnp.dtype, x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """Layer normalisation (Ba et al. 2016) with two-pass statistics, as PyTorch computes it.

    `x` is [..., C], `scale` and `bias` are [C]. The arithmetic is float32, and rounded to `result` once.
    """
    return _layer_norm_forward(epsilon, result, x, scale, bias)[0]


def _layer_norm_forward(
    epsilon: float, result: jnp.dtype, x: jax.Array, scale: jax.Array, bias: jax.Array
) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    values = _float32(x)
    mean = values.mean(axis=-1, keepdims=True)  # [..., 1]
    centred = values - mean
    inverse = jax.lax.rsqrt(jnp.square(centred).mean(axis=-1, keepdims=True) + epsilon)
    return (centred * inverse * _float32(scale) + _float32(bias)).astype(result), (x, mean, inverse, scale, bias)


def _layer_norm_backward(
    epsilon: float, result: jnp.dtype, saved: tuple[jax.Array, ...], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """As of `group_norm`, with means over the channels of a position."""
    del epsilon, result
    x, mean, inverse, scale, bias = saved

    def parts(x: jax.Array, cotangent: jax.Array) -> tuple[jax.Array, jax.Array]:
        return (_float32(x) - mean) * inverse, _float32(cotangent)

    normalised, gradient = parts(x, cotangent)
    scaled = gradient * _float32(scale)
    along = scaled.mean(axis=-1, keepdims=True)
    across = (scaled * normalised).mean(axis=-1, keepdims=True)
    dx = inverse * (scaled - along - normalised * across)
    # Sums over positions compute h * g again: otherwise XLA stores it in float32 when it sums over channels, for both.
    normalised, gradient = parts(*jax.lax.optimization_barrier((x, cotangent)))
    rows = tuple(range(x.ndim - 1))
    dscale, dbias = (gradient * normalised).sum(axis=rows), gradient.sum(axis=rows)
    return dx.astype(x.dtype), dscale.astype(scale.dtype), dbias.astype(bias.dtype)


layer_norm.defvjp(_layer_norm_forward, _layer_norm_backward)


class LayerNorm(nn.Module):
    """`layer_norm` as a layer."""

    epsilon: float
    result: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """[..., C] -> [..., C] in `result`."""
        scale = self.param("scale", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        bias = self.param("bias", nn.initializers.zeros_init(), (x.shape[-1],), jnp.float32)
        return layer_norm(self.epsilon, self.result, x, scale, bias)


def require_norms(name: str) -> None:
    """Raises `InputError` for a value of `norms` that is unknown, or that this device doesn't support."""
    require_norms_name(name)
    if name == "pallas" and not has_ampere():
        raise InputError(
            f"norms: pallas needs an NVIDIA GPU of the Ampere generation or later; found "
            f"{jax.devices()[0].device_kind}; use xla"
        )
