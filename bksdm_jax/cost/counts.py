"""Parameters and multiply-adds of a network, from shapes alone: by THOP's rules and in full."""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
from flax import linen as nn

from bksdm_jax.base import trees
from bksdm_jax.models.attention import Attention
from bksdm_jax.models.clip import SelfAttention
from bksdm_jax.models.unet import UNet, dotted, example_inputs
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.models.vae import VAEAttention


@dataclasses.dataclass(frozen=True)
class LayerCounts:
    """Counts of one call (of the entire batch) by path `a/b/c`.

    Attributes:
        parameters: by array.
        thop: multiply-adds by layer by the rules of THOP, the tool behind the paper's figures. Convolutions and linear
            layers count one per weight and output position, LayerNorms 4 per element, and the two matrix products
            inside attention nothing.
        full: multiply-adds by layer of all products: convolutions, linear layers and attention.
    """

    parameters: dict[str, int]
    thop: dict[str, int]
    full: dict[str, int]


def layer_counts(module: nn.Module, *inputs: Any, method: str = "__call__") -> LayerCounts:
    """Counts parameters and multiply-adds of one call; nothing is computed.

    Args:
        module: a Flax module.
        *inputs: its inputs, as arrays or `jax.ShapeDtypeStruct`.
        method: the method to call.
    """
    thop: Counter[str] = Counter()
    full: Counter[str] = Counter()
    running: list[str] = []

    def count(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer, path = context.module, "/".join(context.module.path)
        outermost = path not in running  # a subclass that calls its parent's method counts once
        running.append(path)
        out = call(*args, **kwargs)
        running.pop()
        if context.method_name == "__call__" and outermost:
            if isinstance(layer, (nn.Conv, nn.Dense)):
                kernel = layer.variables["params"]["kernel"]
                thop[path] += math.prod(out.shape[:-1]) * math.prod(kernel.shape)
                full[path] += math.prod(out.shape[:-1]) * math.prod(kernel.shape)
            elif isinstance(layer, nn.LayerNorm):
                thop[path] += 4 * math.prod(out.shape)
            elif isinstance(layer, (Attention, SelfAttention, VAEAttention)):
                full[path] += _attention_products(*args)
        return out

    with nn.intercept_methods(count):
        shapes = jax.eval_shape(lambda *args: module.init(jax.random.key(0), *args, method=method), *inputs)["params"]
    parameters = {path: math.prod(leaf.shape) for path, leaf in trees.flatten(shapes).items()}
    return LayerCounts(parameters, dict(thop), dict(full))


def _attention_products(x: jax.Array, context: jax.Array | None = None) -> int:
    """Multiply-adds of Q K^T and softmax(...) V for `x` [B, ..., C] and `context` [B, M, K]."""
    batch, *positions, channels = x.shape
    queries = math.prod(positions)
    keys = queries if context is None else context.shape[1]
    return 2 * batch * queries * keys * channels


@dataclasses.dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds of one call at batch 1: by THOP's rules and in full."""

    parameters: int
    macs: int
    full_macs: int

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.parameters + other.parameters, self.macs + other.macs, self.full_macs + other.full_macs)

    def times(self, calls: int) -> "Cost":
        """The cost of several calls; parameters count once."""
        return Cost(self.parameters, self.macs * calls, self.full_macs * calls)


NOTHING = Cost(0, 0, 0)


def total(counts: LayerCounts, below: str = "") -> Cost:
    """The sum over the layers whose path begins with `below`."""
    parts = (counts.parameters, counts.thop, counts.full)
    return Cost(*(sum(value for path, value in part.items() if path.startswith(below)) for part in parts))


@functools.cache  # tracing a U-Net takes seconds
def unet_cost(config: UNetConfig, latent_size: int) -> Mapping[str, Cost]:
    """The cost of a U-Net by stage, with Diffusers' names.

    Other layers are under `input` (`conv_in` and embeddings) and `output` (`conv_norm_out`, `conv_out`).

    Args:
        config: the U-Net.
        latent_size: height and width of the latents; rounded up to a multiple of `config.downscale`.
    """
    latent_size = -(-latent_size // config.downscale) * config.downscale
    counts = layer_counts(UNet(config), *example_inputs(config, 1, latent_size))
    groups = dict.fromkeys(("conv_in", "time_embedding", "add_embedding"), "input")
    groups |= dict.fromkeys(("conv_norm_out", "conv_out"), "output")

    def stage(path: str) -> str:
        head = path.split("/", maxsplit=1)[0]
        return groups.get(head, dotted(head))

    parts = (counts.parameters, counts.thop, counts.full)
    costs = {
        name: Cost(*(sum(value for path, value in part.items() if stage(path) == name) for part in parts))
        for name in ("input", *config.stages(), "output")
    }
    return MappingProxyType(costs)
