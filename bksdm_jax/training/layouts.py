"""How the weights of convolutions lie in memory.

Flax's kernels are [h, w, C, D], and JAX keeps D fastest (`hwio`). cuDNN reads [D, h, w, C] (`ohwi`), so that on NVIDIA
GPUs XLA transposes every kernel, and its gradient, at each use. Kept in that order, they are the same arrays to
everything else. Compiled for an H200, a small update with `ohwi` has 21 kernels that lay out convolution weights, apart
from those that turn them round for a gradient, instead of 150, and 68 copies of them instead of 264.
"""

from typing import Any

import jax
from jax.experimental.layout import Format, Layout

_OHWI = Layout((3, 0, 1, 2))


def with_conv_layout(tree: Any, conv_layout: str) -> Any:
    """Gives kernels of convolutions, all leaves of four dimensions, the layout; leaves are `jax.ShapeDtypeStruct`."""
    if conv_layout == "hwio":
        return tree

    def give(leaf: jax.ShapeDtypeStruct) -> jax.ShapeDtypeStruct:
        return leaf.update(sharding=Format(_OHWI, leaf.sharding)) if leaf.ndim == 4 else leaf

    return jax.tree.map(give, tree)


def placements(tree: Any) -> Any:
    """Where arrays like these are to be put, for `jax.jit` and `jax.device_put`: shardings, with layouts if given."""
    return jax.tree.map(lambda leaf: leaf.sharding if leaf.format.layout is None else leaf.format, tree)


def relaid(tree: Any, like: Any) -> Any:
    """Arrays of the shardings of `like`, with its layouts too; the arrays are donated."""
    if all(leaf.format.layout is None for leaf in jax.tree.leaves(like)):
        return tree
    return jax.jit(lambda tree: tree, donate_argnums=0, out_shardings=placements(like))(tree)
