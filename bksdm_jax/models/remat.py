"""Rematerialisation: which activations the backward pass recomputes instead of the forward pass storing them."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from bksdm_jax.base.errors import known_name


def _keeps_products(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("dot_general", "conv_general_dilated")


_NOTHING = jax.checkpoint_policies.nothing_saveable
_KINDS = ("resnet", "attention", "downsampler", "upsampler")
POLICIES: dict[str, dict[str, Callable[..., Any]]] = {
    "none": {},
    "products": dict.fromkeys(_KINDS, _keeps_products),
    "attention": {"attention": _NOTHING},
    "blocks": dict.fromkeys(_KINDS, _NOTHING),
    "full": {"stage": _NOTHING},
}
"""Name -> kind of block, or `stage` -> its checkpoint policy; kinds without one store everything.

`products` stores the outputs of convolutions and matrix products and recomputes norms, activations and casts, which is
cheap. `attention` stores only the inputs of transformers. `blocks` stores only the inputs of blocks, which costs about
two thirds of a forward pass, since the last product of a block isn't recomputed. `full` stores only the inputs of
stages, which costs one forward pass.
"""


def require_remat(name: str) -> None:
    """Raises `InputError` unless `name` is a key of `POLICIES`."""
    known_name("config", "remat", name, POLICIES)


def rematerialised(block: type[nn.Module], kind: str, name: str) -> type[nn.Module]:
    """The block class with the checkpoint policy that `name` has for this kind of block, or for a `stage`."""
    policy = POLICIES[name].get(kind)
    return block if policy is None else nn.remat(block, policy=policy)
