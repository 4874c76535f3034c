"""Convolutions and products in the forms that XLA's CPU backend computes fast; elsewhere they are XLA's own.

`convolve_doubled` computes less on other platforms too.
"""

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from bksdm_jax.models.devices import by_platform

_SMALL_MAP = 16 * 16  # up to this many pixels a CPU convolves faster by a matrix product
_DOUBLED_IN_PARTS = 16 * 16  # from so many pixels on; below, four small convolutions cost as much as a larger one
_DOUBLED_ON_CPU = 32 * 32  # on CPUs; below, adding up the kernels takes as long as is saved
_NHWC = ("NHWC", "HWIO", "NHWC")
_Pads = tuple[tuple[int, int], tuple[int, int]]


def rows_product(lhs: jax.Array, rhs: jax.Array, *_: Any, **options: Any) -> jax.Array:
    """[..., K] times [K, N] -> [..., N], as `lax.dot_general`; on CPUs with the leading dimensions flattened to one.

    With several leading dimensions, XLA's CPU backend copies a transposed operand for the gradient of `rhs`, which
    takes longer than the product: both gradients of [32, 64, 64] x [64, 512] took 2.6 times as long (two cores). With
    one, its TPU backend copies gradients to another layout. Dimension numbers are ignored, since they are always these;
    `options` are the other arguments of `lax.dot_general`.
    """

    def flat(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        rows = jax.lax.dot_general(lhs.reshape(-1, lhs.shape[-1]), rhs, (((1,), (0,)), ((), ())), **options)
        return rows.reshape(*lhs.shape[:-1], rhs.shape[-1])

    def plain(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return jax.lax.dot_general(lhs, rhs, (((lhs.ndim - 1,), (0,)), ((), ())), **options)

    return plain(lhs, rhs) if lhs.ndim == 2 else by_platform(lhs, rhs, cpu=flat, default=plain)


def convolve(lhs: jax.Array, rhs: jax.Array, strides: Sequence[int], padding: Any, **options: Any) -> jax.Array:
    """`lax.conv_general_dilated` in NHWC; on CPUs, unless an option asks for more, as they do it fastest.

    `lhs` is [B, H, W, C], `rhs` [h, w, C, D]; `padding` counts pixels before and after, by dimension.
    """

    def plain(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(lhs, rhs, strides, padding, **({"dimension_numbers": _NHWC} | options))

    def on_cpu(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        if lhs.shape[1] * lhs.shape[2] > _SMALL_MAP and rhs.shape[:2] != (1, 1):
            return _large(lhs, rhs, tuple(strides), tuple(padding))
        patches = _patches(lhs, rhs.shape[:2], strides, padding)
        return rows_product(patches, rhs.reshape(-1, rhs.shape[-1]))

    dilated = any(step != 1 for key in ("lhs_dilation", "rhs_dilation") for step in options.get(key) or ())
    special = any(options.get(key) is not None for key in ("precision", "preferred_element_type"))
    if dilated or special or options.get("feature_group_count", 1) > 1:
        return plain(lhs, rhs)
    return by_platform(lhs, rhs, cpu=on_cpu, default=plain)


def convolve_doubled(lhs: jax.Array, rhs: jax.Array, *_: Any, **options: Any) -> jax.Array:
    """A 3x3 convolution, padded by one, of `lhs` with every pixel repeated to 2x2; large maps without repeating them.

    Of three rows of the kernel, two meet the same pixel in every row of the result, so their sum does; columns
    likewise. So result[2i + a, 2j + b] is, for each (a, b), a 2x2 convolution of `lhs`: 16 products instead of 36 for
    four pixels. On several devices, gradients of all 16 are reduced, not of the 9.
    `lhs` is [B, H, W, C], `rhs` [3, 3, C, D], the result [B, 2H, 2W, D]. Strides and padding are ignored, since they
    are always these; `options` are those of `convolve`.
    """
    pixels = lhs.shape[1] * lhs.shape[2]

    def repeated(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return convolve(lhs.repeat(2, axis=1).repeat(2, axis=2), rhs, (1, 1), ((1, 1), (1, 1)), **options)

    def in_parts(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        wide = rhs.astype(jnp.float32)  # once, so that its gradients are added up in float32 too
        rows = [jnp.stack([part(lhs, wide, a, b) for b in (0, 1)], axis=3) for a in (0, 1)]  # [B, H, W, 2, D]
        return jnp.stack(rows, axis=2).reshape(lhs.shape[0], 2 * lhs.shape[1], 2 * lhs.shape[2], -1)

    def part(lhs: jax.Array, wide: jax.Array, a: int, b: int) -> jax.Array:
        kernel = _pair(_pair(wide, a, 0), b, 1).astype(rhs.dtype)  # [2, 2, C, D]
        return convolve(lhs, kernel, (1, 1), ((1 - a, a), (1 - b, b)), **options)  # [B, H, W, D]

    if pixels < _DOUBLED_IN_PARTS:
        return repeated(lhs, rhs)
    return by_platform(lhs, rhs, cpu=in_parts if pixels >= _DOUBLED_ON_CPU else repeated, default=in_parts)


def _pair(kernel: jax.Array, side: int, axis: int) -> jax.Array:
    """The two sums of three rows (axis 0) or columns (1) that meet the pixels before and behind `side` 0 or 1."""
    first, middle, last = jnp.split(kernel, 3, axis=axis)
    return jnp.concatenate([first + middle, last] if side else [first, middle + last], axis=axis)


def _patches(x: jax.Array, size: Sequence[int], strides: Sequence[int], padding: _Pads) -> jax.Array:
    """[B, H, W, C] -> [B, rows, columns, h * w * C], the pixels under a kernel of `size` (h, w) at each position.

    Convolving is then one matrix product (im2col): on maps of 2x2 to 8x8 pixels XLA's CPU convolution and its gradients
    reach 6 to 60 GFLOP/s, the product 50 to 90 (two cores). Columns are collected before rows: h + w slices, which are
    kernels of their own, take less compiling than h * w.
    """
    for axis in (2, 1):
        taps, step, pads = size[axis - 1], strides[axis - 1], [(0, 0)] * 4
        pads[axis] = padding[axis - 1]
        x = jnp.pad(x, pads)
        span = (x.shape[axis] - taps) // step * step + 1
        parts = [jax.lax.slice_in_dim(x, start, start + span, step, axis) for start in range(taps)]
        x = jnp.concatenate(parts, axis=-1)
    return x


@functools.partial(jax.custom_vjp, nondiff_argnums=(2, 3))
def _large(x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: _Pads) -> jax.Array:
    """XLA's convolution in NHWC, with gradients that are such convolutions too.

    Those that JAX derives have other dimension numbers, which XLA's CPU backend rewrites outside of loops only; inside,
    as with several micro-batches, those of [8, 32, 32, 64] took 10 (`x`) and 85 (`kernel`) times as long.
    """
    return jax.lax.conv_general_dilated(x, kernel, strides, padding, dimension_numbers=_NHWC)


def _large_forward(
    x: jax.Array, kernel: jax.Array, strides: tuple[int, int], padding: _Pads
) -> tuple[jax.Array, tuple[jax.Array, jax.Array]]:
    return _large(x, kernel, strides, padding), (x, kernel)


def _large_backward(
    strides: tuple[int, int], padding: _Pads, kept: tuple[jax.Array, jax.Array], g: jax.Array
) -> tuple[jax.Array, jax.Array]:
    x, kernel = kept
    size = kernel.shape[:2]
    # That of x: g, its pixels `strides` apart, convolved with the kernel turned round.
    spans = [(g.shape[i + 1] - 1) * strides[i] + size[i] for i in (0, 1)]  # pixels of the padded x that are read
    unread = [x.shape[i + 1] + sum(padding[i]) - spans[i] for i in (0, 1)]
    around = tuple((size[i] - 1 - padding[i][0], size[i] - 1 - padding[i][1] + unread[i]) for i in (0, 1))
    apart = jax.lax.pad(g, jnp.zeros((), g.dtype), ((0, 0, 0), *((0, 0, step - 1) for step in strides), (0, 0, 0)))
    of_x = _large(apart, jnp.flip(kernel, (0, 1)).swapaxes(2, 3), (1, 1), around)
    if strides != (1, 1):
        patches = _patches(x, size, strides, padding)
        return of_x, (patches.reshape(-1, patches.shape[-1]).T @ g.reshape(-1, g.shape[-1])).reshape(kernel.shape)
    # That of the kernel: x convolved with g, where C takes the place of B, which is summed over like channels.
    sums = x.transpose(3, 1, 2, 0), g.transpose(1, 2, 0, 3)  # [C, H, W, B], [rows, columns, B, D]
    of_kernel = jax.lax.conv_general_dilated(*sums, (1, 1), padding, dimension_numbers=_NHWC)  # [C, h, w, D]
    return of_x, of_kernel.transpose(1, 2, 0, 3)


_large.defvjp(_large_forward, _large_backward)
