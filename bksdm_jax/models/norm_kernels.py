"""The sums of group normalisation over pixels, forward and backward, as kernels for NVIDIA GPUs that read once.

On GPUs XLA reads the input once for a mean and again for a variance, and backward it writes the gradient before SiLU in
float32, since it doesn't compute exponentials inside a reduction, to read it twice.
Here a program reads a tile of pixels x channels, and writes sums over its pixels for each channel. Tiles are combined,
and the result is computed, by XLA, which fuses that with what comes before and after. They haven't been timed on a GPU
yet, so they run only if `norms` is `pallas`.

The kernels are Pallas's for Triton, which JAX 0.10 and 0.11 both have, for Ampere GPUs too; later versions may have
Mosaic GPU only, which needs Hopper.
"""

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bksdm_jax.models.devices import axes_to_split, by_platform

_PLATFORM = "cuda"  # whose kernels these are; on "cpu" they are interpreted
_ROWS, _COLUMNS = 128, 64  # pixels and channels of a tile; 64 channels in bfloat16 are a cache line
_LEAST_ROWS = 16
_WARPS = 8  # a thread holds 32 values of each operand


def moments(
    plain: Callable[[jax.Array], tuple[jax.Array, jax.Array]], groups: int, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Means and variances, float32 [B, G], of the groups of channels of [B, P, C].

    As accurate as two passes: a tile's squares are about its channels' own means m, and with the mean of the group M,
    the variance is mean(squares / pixels of a tile + (m - M)^2) (Chan et al. 1979). `plain` computes the same; it
    does so on other devices, and where the kernels don't support the shapes.
    """
    if not _fits(x):
        return plain(x)

    def kernel(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        means, squares = (
            each.reshape(*each.shape[:2], groups, -1) for each in _by_device(_moments_kernel, (x,), ())
        )  # [B, T, G, C / G]
        mean = means.mean(axis=(1, 3))
        variance = squares / _rows(x) + jnp.square(means - mean[:, None, :, None])
        return mean, variance.mean(axis=(1, 3))

    return by_platform(x, default=plain, **{_PLATFORM: kernel})


def sums(
    plain: Callable[..., tuple[jax.Array, jax.Array]], silu: bool, x: jax.Array, cotangent: jax.Array, *more: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """The sums over the pixels, float32 [B, C], of g and of h * g.

    h = (x - mean) * inverse; g is the cotangent, and with `silu` the gradient of h * scale + bias. `x` and `cotangent`
    are [B, P, C]; `more` are mean and inverse, [B, 1, C], and scale and bias, [C], float32. `plain` is as of `moments`.
    """
    if not _fits(x):
        return plain(x, cotangent, *more)

    def kernel(x: jax.Array, cotangent: jax.Array, mean: jax.Array, inverse: jax.Array, *affine: jax.Array) -> tuple:
        found = _by_device(functools.partial(_sums_kernel, silu), (x, cotangent, mean, inverse), affine)
        return tuple(each.sum(axis=1) for each in found)

    return by_platform(x, cotangent, *more, default=plain, **{_PLATFORM: kernel})


def silu_slope(x: jax.Array) -> jax.Array:
    """The derivative of x * sigmoid(x)."""
    sigmoid = jax.nn.sigmoid(x)
    return sigmoid * (1 + x * (1 - sigmoid))


def _moments_kernel(x: jax.Array) -> tuple[jax.Array, jax.Array]:
    def body(x: jax.Array, mean: jax.Array, squares: jax.Array) -> None:
        values = x[...].astype(jnp.float32)  # [R, c]
        of_tile = values.sum(axis=0) / values.shape[0]
        mean[...] = of_tile
        squares[...] = jnp.square(values - of_tile[None]).sum(axis=0)

    return _call(body, x)


def _sums_kernel(silu: bool, *operands: jax.Array) -> tuple[jax.Array, jax.Array]:
    def body(*refs: jax.Array) -> None:
        x, gradient = (ref[...].astype(jnp.float32) for ref in refs[:2])  # [R, c]
        mean, inverse, scale, bias = (ref[...][None] for ref in refs[2:6])  # [1, c]
        normalised = (x - mean) * inverse
        if silu:
            gradient *= silu_slope(normalised * scale + bias)
        refs[6][...] = gradient.sum(axis=0)
        refs[7][...] = (gradient * normalised).sum(axis=0)

    return _call(body, *operands)


def _call(body: Callable[..., None], *operands: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Runs `body` for every tile; operands are [B, P, C], [B, 1, C] or [C], results [B, T, C], one row for each tile.

    `body` gets references to a tile's part of the operands, [R, c] or [c], and of the two results, [c].
    """
    from jax.experimental import pallas as pl  # noqa: PLC0415  # takes long to import
    from jax.experimental.pallas import triton  # noqa: PLC0415

    batch, pixels, channels = operands[0].shape
    rows = _rows(operands[0])
    tile = pl.BlockSpec((None, rows, _COLUMNS), lambda b, t, c: (b, t, c))
    row = pl.BlockSpec((None, None, _COLUMNS), lambda b, t, c: (b, t, c))
    of_image = pl.BlockSpec((None, None, _COLUMNS), lambda b, t, c: (b, 0, c))
    of_all = pl.BlockSpec((_COLUMNS,), lambda b, t, c: (c,))

    def spec(x: jax.Array) -> pl.BlockSpec:
        if x.ndim == 1:
            return of_all
        return of_image if x.shape[1] == 1 else tile

    return pl.pallas_call(
        body,
        grid=(batch, pixels // rows, channels // _COLUMNS),
        in_specs=[spec(x) for x in operands],
        out_specs=[row] * 2,
        out_shape=[jax.ShapeDtypeStruct((batch, pixels // rows, channels), jnp.float32)] * 2,
        compiler_params=triton.CompilerParams(num_warps=_WARPS, num_stages=1),
        interpret=_PLATFORM == "cpu",
    )(*operands)


def _by_device(
    kernel: Callable[..., tuple[jax.Array, jax.Array]], by_image: tuple[jax.Array, ...], whole: tuple[jax.Array, ...]
) -> tuple[jax.Array, jax.Array]:
    """Runs a kernel; XLA can't partition it, so under a mesh each device runs it on its share of the images."""
    axes, count = axes_to_split()
    if count == 1:
        return kernel(*by_image, *whole)
    split = PartitionSpec(axes)
    specs = (*[split] * len(by_image), *[PartitionSpec()] * len(whole))
    # check_vma: the kernel doesn't declare which axes its results vary over
    return jax.shard_map(kernel, in_specs=specs, out_specs=split, check_vma=False)(*by_image, *whole)


def _fits(x: jax.Array) -> bool:
    """Whether [B, P, C] has whole tiles, and each device a share of the batch."""
    _, count = axes_to_split()
    return _rows(x) >= _LEAST_ROWS and x.shape[-1] % _COLUMNS == 0 and x.shape[0] % count == 0


def _rows(x: jax.Array) -> int:
    """Pixels of a tile: a power of two, as Triton wants, that divides those of [B, P, C]."""
    return min(x.shape[1] & -x.shape[1], _ROWS)
