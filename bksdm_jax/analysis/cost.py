"""What a network costs, from shapes alone: parameters and multiply-adds by THOP's rules."""

import dataclasses
import functools
import math
from collections import Counter
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
from flax import linen as nn

from bksdm_jax import trees
from bksdm_jax.models.abstract import parameter_shapes_of
from bksdm_jax.models.unet import UNet, UNetConfig, dotted, example_inputs


def thop_macs(module: nn.Module, *inputs: Any, **kwargs: Any) -> dict[str, int]:
    """Multiply-adds of one call by the rules of THOP, the tool that the paper's figures come from.

    Convolutions and linear layers count a multiply-add for each weight and output position; each LayerNorm counts 4
    per element; the two matrix products inside attention count nothing.

    Args:
        module: a Flax module; nothing is computed.
        *inputs, **kwargs: arrays or `jax.ShapeDtypeStruct` for its call.

    Returns:
        `a/b/c` path of each counted layer -> multiply-adds, batch included.
    """
    counts: Counter[str] = Counter()
    running: list[str] = []

    def count(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer, path = context.module, "/".join(context.module.path)
        outermost = path not in running  # a subclass that calls its parent's method is one layer
        running.append(path)
        out = call(*args, **kwargs)
        running.pop()
        if context.method_name == "__call__" and outermost:
            if isinstance(layer, (nn.Conv, nn.Dense)):
                kernel = layer.variables["params"]["kernel"]
                counts[path] += math.prod(out.shape[:-1]) * math.prod(kernel.shape)
            elif isinstance(layer, nn.LayerNorm):
                counts[path] += 4 * math.prod(out.shape)
        return out

    with nn.intercept_methods(count):
        jax.eval_shape(lambda *args: module.init(jax.random.key(0), *args, **kwargs), *inputs)
    return dict(counts)


@dataclasses.dataclass(frozen=True)
class StageCost:
    """Parameters, and multiply-adds of one evaluation at batch 1, of one stage."""

    parameters: int
    macs: int


@functools.cache  # tracing a U-Net takes seconds
def unet_cost(config: UNetConfig, latent_size: int) -> Mapping[str, StageCost]:
    """The cost of a U-Net by stage, under Diffusers' names.

    Layers outside of the stages are `input` (`conv_in`, `time_embedding`) and `output` (`conv_norm_out`, `conv_out`).

    Args:
        config: the U-Net.
        latent_size: height and width of the latent; rounded up to what the U-Net can halve as often as it does.
    """
    multiple = 2 ** sum(stage.sampler for stage in config.down)
    latent_size = -(-latent_size // multiple) * multiple
    module, inputs = UNet(config), example_inputs(config, 1, latent_size)
    shapes = parameter_shapes_of(module, *inputs)
    macs = thop_macs(module, *inputs)
    groups = {"conv_in": "input", "time_embedding": "input", "conv_norm_out": "output", "conv_out": "output"}

    def stage(path: str) -> str:
        head = path.split("/", maxsplit=1)[0]
        return groups.get(head, dotted(head))

    names = ["input", *config.stages(), "output"]
    parameters = _sum_by(stage, {path: math.prod(leaf.shape) for path, leaf in trees.flatten(shapes).items()})
    by_stage = _sum_by(stage, macs)
    return MappingProxyType({name: StageCost(parameters[name], by_stage[name]) for name in names})


def _sum_by(key: Any, counts: Mapping[str, int]) -> Counter[str]:
    sums: Counter[str] = Counter()
    for name, value in counts.items():
        sums[key(name)] += value
    return sums
