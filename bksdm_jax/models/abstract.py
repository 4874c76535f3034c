"""Parameter shapes of a module, without computing anything."""

import functools
from typing import Any

import jax
from flax import linen as nn


def parameter_shapes_of(module: nn.Module, *inputs: Any) -> dict[str, Any]:
    """The collection `params` as nested `jax.ShapeDtypeStruct`; nothing is computed or compiled.

    `inputs` are pytrees that the module is called with, `jax.ShapeDtypeStruct` in place of arrays.
    """
    # A new tree for each caller, since callers may modify it.
    leaves, structure = jax.tree.flatten(inputs)
    return jax.tree.map(lambda leaf: leaf, _traced_parameters(module, tuple(leaves), structure))


@functools.lru_cache
def _traced_parameters(module: nn.Module, leaves: tuple[Any, ...], structure: Any) -> dict[str, Any]:
    key = jax.eval_shape(lambda: jax.random.key(0))
    return jax.eval_shape(module.init, key, *jax.tree.unflatten(structure, leaves))["params"]
