"""How the weights of convolutions lie in memory.

Flax's kernels are [h, w, C, D], and JAX keeps D fastest (`hwio`). cuDNN reads [D, h, w, C] (`ohwi`), so that on NVIDIA
GPUs XLA transposes every kernel, and its gradient, at each use. In a small update compiled for an H200, `ohwi` leaves
21 of 150 kernels that transpose convolution weights (not counting those that flip them for a gradient), and 68 of 264
that copy them.

Shapes and values are the same, but a compiled program takes one layout only, and what other functions return, or Orbax
restores, is `hwio`: hence `relaid`.
"""

from typing import Any

import jax
from jax.experimental.layout import Format, Layout
from jax.sharding import Mesh

from bksdm_jax.base.errors import InputError

_OHWI = Layout((3, 0, 1, 2))


def with_conv_layout(tree: Any, conv_layout: str, mesh: Mesh) -> Any:
    """Gives kernels of convolutions, all leaves of four dimensions, the layout; leaves are `jax.ShapeDtypeStruct`.

    Raises `InputError` for `ohwi` on TPUs, which pad the fastest dimensions to tiles.
    """
    if conv_layout == "hwio":
        return tree
    device = mesh.devices.flat[0]
    if device.platform == "tpu":
        found = f"found {device.device_kind}; use hwio"
        raise InputError(f"conv_layout: {conv_layout} is cuDNN's, for NVIDIA GPUs; {found}")

    def give(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return leaf.update(sharding=Format(_OHWI, leaf.sharding)) if leaf.ndim == 4 else leaf

    return jax.tree.map(give, tree)


def placements(tree: Any) -> Any:
    """Where arrays like these are to be put, for `jax.jit` and `jax.device_put`: shardings, with layouts if given."""
    return jax.tree.map(lambda leaf: leaf.sharding if leaf.format.layout is None else leaf.format, tree)


def relaid(tree: Any, like: Any) -> Any:
    """The same arrays in the layouts of `like`, whose shardings they have already; those that differ are donated."""

    def relay(leaf: jax.Array, like: jax.ShapeDtypeStruct) -> jax.Array:
        if like.format.layout is None:
            return leaf
        # One after the other, since each needs its room twice.
        return jax.jit(_same, donate_argnums=0, out_shardings=like.format)(leaf)

    return jax.tree.map(relay, tree, like)


def _same(x: jax.Array) -> jax.Array:
    return x
