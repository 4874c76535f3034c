"""Rematerialisation: which activations the backward pass recomputes instead of the forward pass storing them."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from bksdm_jax.models.choices import REMAT


def _keeps_products(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in ("dot_general", "conv_general_dilated")


_POLICIES: dict[str, Callable[..., Any]] = {
    "products": _keeps_products,
    "inputs": jax.checkpoint_policies.nothing_saveable,
}
"""What `REMAT` says is stored -> checkpoint policy."""


def rematerialised(block: type[nn.Module], kind: str, name: str) -> type[nn.Module]:
    """The block class with the checkpoint policy that `REMAT` has under `name` for this kind of block, or `stage`."""
    stored = REMAT[name].get(kind)
    return block if stored is None else nn.remat(block, policy=_POLICIES[stored])
