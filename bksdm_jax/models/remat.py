"""Rematerialisation: what the backward pass computes anew, so that the forward pass need not keep it."""

from collections.abc import Callable
from typing import Any

import jax
from flax import linen as nn

from bksdm_jax.base.errors import known_name

_PRODUCTS = ("dot_general", "conv_general_dilated")
Policy = Callable[..., Any]


def _keeps_products(primitive: Any, *_: Any, **__: Any) -> bool:
    return primitive.name in _PRODUCTS


_NOTHING = jax.checkpoint_policies.nothing_saveable
_KINDS = ("resnet", "attention", "downsampler", "upsampler")
POLICIES: dict[str, dict[str, Policy]] = {
    "none": {},
    "products": dict.fromkeys(_KINDS, _keeps_products),
    "attention": {"attention": _NOTHING},
    "blocks": dict.fromkeys(_KINDS, _NOTHING),
    "full": {"stage": _NOTHING},
}
"""Name -> kind of block, or a whole `stage` -> which of its results are kept; of kinds that aren't there, all.

`products` keeps those of convolutions and matrix products, and computes norms, activations and casts anew: little time.
`attention` keeps the inputs of transformers alone, `blocks` those of every block, which costs about two thirds of
a forward pass, since the last product of each isn't needed again; `full` those of stages: one more forward pass.
"""


def require_remat(name: str) -> None:
    """Raises `InputError` with the known names if this is none of `POLICIES`."""
    known_name("config", "remat", name, POLICIES)


def rematerialised(block: type[nn.Module], kind: str, name: str) -> type[nn.Module]:
    """The class of a block of this kind, or of a `stage`, under the policy `name`."""
    policy = POLICIES[name].get(kind)
    return block if policy is None else nn.remat(block, policy=policy)
