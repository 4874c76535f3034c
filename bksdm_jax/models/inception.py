"""The Inception v3 of Frechet distances: TensorFlow's graph of 2015, as pytorch-fid and torch-fidelity carry it.

It differs from torchvision's network: 1008 outputs, average pools that leave padding out of the count, and a maximum
instead of an average in `Mixed_7c`. Modules have torchvision's names. For inference only: batch normalisation uses its
stored statistics, which are parameters here.
"""

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bksdm_jax.models.abstract import parameter_shapes_of
from bksdm_jax.models.convolution import rows_product
from bksdm_jax.models.devices import by_platform
from bksdm_jax.models.layers import Dense

SIZE = 299
"""Height and width of the images, pixels."""
FEATURES, OUTPUTS = 2048, 1008
_EPSILON = 1e-3


@dataclasses.dataclass(frozen=True)
class _Conv:
    """A convolution's output channels, kernel and stride; padded to keep the size unless `valid`."""

    features: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1
    valid: bool = False


@dataclasses.dataclass(frozen=True)
class _Branch:
    """Convolutions in a row, named `{name}_1`, ..., or `name` if there is one; `fork`: then two side by side."""

    name: str
    convs: tuple[_Conv, ...]
    fork: tuple[_Conv, ...] = ()


@dataclasses.dataclass(frozen=True)
class _Mixed:
    """Branches side by side, with a pool at the end that is projected to `projection` channels.

    `projection` 0: the pool halves the map instead and keeps the channels.
    """

    branches: tuple[_Branch, ...]
    projection: int = 0
    maximum: bool = False


def _mixed_5(projection: int) -> _Mixed:
    double = (_Conv(64), _Conv(96, (3, 3)), _Conv(96, (3, 3)))
    branches = (
        _Branch("branch1x1", (_Conv(64),)),
        _Branch("branch5x5", (_Conv(48), _Conv(64, (5, 5)))),
        _Branch("branch3x3dbl", double),
    )
    return _Mixed(branches, projection)


def _mixed_6(width: int) -> _Mixed:
    row, column = (1, 7), (7, 1)
    double = (_Conv(width), _Conv(width, column), _Conv(width, row), _Conv(width, column), _Conv(192, row))
    branches = (
        _Branch("branch1x1", (_Conv(192),)),
        _Branch("branch7x7", (_Conv(width), _Conv(width, row), _Conv(192, column))),
        _Branch("branch7x7dbl", double),
    )
    return _Mixed(branches, 192)


def _mixed_7(maximum: bool) -> _Mixed:
    fork = (_Conv(384, (1, 3)), _Conv(384, (3, 1)))
    branches = (
        _Branch("branch1x1", (_Conv(320),)),
        _Branch("branch3x3", (_Conv(384),), fork),
        _Branch("branch3x3dbl", (_Conv(448), _Conv(384, (3, 3))), fork),
    )
    return _Mixed(branches, 192, maximum)


def _halved(features: int) -> _Conv:
    return _Conv(features, (3, 3), 2, valid=True)


_STEM = (
    ("Conv2d_1a_3x3", _halved(32)),
    ("Conv2d_2a_3x3", _Conv(32, (3, 3), valid=True)),
    ("Conv2d_2b_3x3", _Conv(64, (3, 3))),
    ("", None),  # a maximum over 3x3 that halves the map
    ("Conv2d_3b_1x1", _Conv(80)),
    ("Conv2d_4a_3x3", _Conv(192, (3, 3), valid=True)),
    ("", None),
)
_BLOCKS = {
    "Mixed_5b": _mixed_5(32),
    "Mixed_5c": _mixed_5(64),
    "Mixed_5d": _mixed_5(64),
    "Mixed_6a": _Mixed(
        (
            _Branch("branch3x3", (_halved(384),)),
            _Branch("branch3x3dbl", (_Conv(64), _Conv(96, (3, 3)), _halved(96))),
        )
    ),
    "Mixed_6b": _mixed_6(128),
    "Mixed_6c": _mixed_6(160),
    "Mixed_6d": _mixed_6(160),
    "Mixed_6e": _mixed_6(192),
    "Mixed_7a": _Mixed(
        (
            _Branch("branch3x3", (_Conv(192), _halved(320))),
            _Branch("branch7x7x3", (_Conv(192), _Conv(192, (1, 7)), _Conv(192, (7, 1)), _halved(192))),
        )
    ),
    "Mixed_7b": _mixed_7(maximum=False),
    "Mixed_7c": _mixed_7(maximum=True),
}


class BatchNorm(nn.Module):
    """Batch normalisation with stored statistics, then ReLU; in float32, the result is in `dtype`."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def vector(name: str, initial: nn.initializers.Initializer) -> jax.Array:
            return self.param(name, initial, x.shape[-1:], jnp.float32)

        ones, zeros = nn.initializers.ones_init(), nn.initializers.zeros_init()
        scale, bias, mean, var = (
            vector("scale", ones),
            vector("bias", zeros),
            vector("mean", zeros),
            vector("var", ones),
        )
        scale = scale * jax.lax.rsqrt(var + _EPSILON)
        return nn.relu(x.astype(jnp.float32) * scale + (bias - mean * scale)).astype(self.dtype)


class ConvNorm(nn.Module):
    """A convolution without bias, batch normalisation, ReLU; `average`: over 3x3 pixels after the convolution.

    An average before a 1x1 convolution, as in the original, is the same, but of more channels.
    """

    shape: _Conv
    dtype: jnp.dtype
    average: bool = False

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        kernel, stride = self.shape.kernel, self.shape.stride
        padding = [(0, 0) if self.shape.valid else (side // 2,) * 2 for side in kernel]
        options = {"strides": (stride, stride), "padding": padding, "use_bias": False, "dtype": self.dtype}
        options["conv_general_dilated"] = _convolve
        x = nn.Conv(self.shape.features, kernel, name="conv", **options)(x)
        return BatchNorm(self.dtype, name="bn")(_average_pool(x) if self.average else x)


class Mixed(nn.Module):
    """An Inception block: its branches' maps, concatenated."""

    shape: _Mixed
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        def layer(shape: _Conv, name: str, x: jax.Array) -> jax.Array:
            return ConvNorm(shape, self.dtype, name=name)(x)

        maps = []
        for branch in self.shape.branches:
            h, count = x, len(branch.convs)
            for i, shape in enumerate(branch.convs, 1):
                alone = count == 1 and not branch.fork
                h = layer(shape, branch.name if alone else f"{branch.name}_{i}", h)
            ends = [
                layer(shape, f"{branch.name}_{count + 1}{letter}", h)
                for letter, shape in zip("ab", branch.fork, strict=False)
            ]
            maps += ends or [h]
        if self.shape.projection:
            pool = _max_pool(x, 1) if self.shape.maximum else x
            project = ConvNorm(_Conv(self.shape.projection), self.dtype, not self.shape.maximum, name="branch_pool")
            maps.append(project(pool))
        else:
            maps.append(_max_pool(x, 2))
        return jnp.concatenate(maps, axis=-1)


class Inception(nn.Module):
    """The network."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> dict[str, jax.Array]:
        """[B, 299, 299, 3] in [-1, 1] -> `pool` [B, 2048] and `logits` [B, 1008] without the bias, float32."""
        x = images.astype(self.dtype)
        for name, shape in _STEM:
            x = _max_pool(x, 2) if shape is None else ConvNorm(shape, self.dtype, name=name)(x)
        for name, block in _BLOCKS.items():
            x = Mixed(block, self.dtype, name=name)(x)
        pool = x.astype(jnp.float32).mean(axis=(1, 2))
        logits = Dense(OUTPUTS, use_bias=False, dtype=self.dtype, name="fc")(pool)
        return {"pool": pool, "logits": logits.astype(jnp.float32)}


def inception_parameter_shapes() -> dict[str, Any]:
    """The parameters as nested `jax.ShapeDtypeStruct`."""
    return parameter_shapes_of(Inception(), jax.ShapeDtypeStruct((1, SIZE, SIZE, 3), jnp.float32))


def _convolve(
    lhs: jax.Array, rhs: jax.Array, strides: Sequence[int], padding: Sequence[tuple[int, int]], **options: Any
) -> jax.Array:
    """`lax.conv_general_dilated` in NHWC, by the quickest way for a CPU: for these sizes up to three times as quick.

    A 1x1 convolution is one matrix product. One without padding is a product over patches (im2col), image by image so
    that the patches stay in the cache.
    """
    (height, width, channels, features), step = rhs.shape, strides[0]

    def plain(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        return jax.lax.conv_general_dilated(lhs, rhs, strides, padding, **options)

    def patches(lhs: jax.Array, rhs: jax.Array) -> jax.Array:
        rows, columns = (lhs.shape[1] - height) // step + 1, (lhs.shape[2] - width) // step + 1
        matrix = rhs.reshape(-1, features)

        def one(image: jax.Array) -> jax.Array:
            parts = [
                image[i : i + (rows - 1) * step + 1 : step, j : j + (columns - 1) * step + 1 : step]
                for i in range(height)
                for j in range(width)
            ]
            joined = jnp.concatenate(parts, axis=-1).reshape(rows * columns, -1)
            return (joined @ matrix).reshape(rows, columns, features)

        return jax.lax.map(one, lhs)

    if (height, width) == (1, 1):
        return rows_product(lhs, rhs.reshape(channels, features))
    if any(side != (0, 0) for side in padding):
        return plain(lhs, rhs)
    return by_platform(lhs, rhs, cpu=patches, default=plain)


def _max_pool(x: jax.Array, stride: int) -> jax.Array:
    """Maximum over 3x3 pixels; without padding if `stride` is 2."""
    return nn.max_pool(x, (3, 3), (stride, stride), "SAME" if stride == 1 else "VALID")


def _average_pool(x: jax.Array) -> jax.Array:
    """Mean over those of 3x3 pixels that are in the map, float32."""
    x = x.astype(jnp.float32)
    for axis in (1, 2):
        length = x.shape[axis]
        counts = np.full(length, 3, np.float32)
        counts[0] = counts[-1] = 2
        padded = jnp.pad(x, [(int(i == axis),) * 2 for i in range(4)])
        total = sum(jax.lax.slice_in_dim(padded, i, i + length, axis=axis) for i in range(3))
        x = total / np.expand_dims(counts, tuple(i for i in range(4) if i != axis))
    return x
