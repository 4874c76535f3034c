"""Parameters and multiply-adds of networks, from shapes alone: by THOP's rules and in full."""

import dataclasses
import functools
import math
from collections import defaultdict
from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bksdm_jax.base import trees
from bksdm_jax.models.attention import Attention
from bksdm_jax.models.clip import CLIPTextConfig, CLIPTextEncoder, SelfAttention
from bksdm_jax.models.norms import LayerNorm
from bksdm_jax.models.traced_once import intercepting
from bksdm_jax.models.unet import UNet, block_of, dotted, example_inputs
from bksdm_jax.models.unet_table import UNetConfig, replaceable
from bksdm_jax.models.vae import VAE, VAEAttention, VAEConfig
from bksdm_jax.pipelines.pipeline import Architectures


@dataclasses.dataclass(frozen=True)
class Cost:
    """Parameters, and multiply-adds of one call.

    Attributes:
        parameters: their number.
        macs: by the rules of THOP, the tool behind the paper's figures. Convolutions and linear layers count one per
            weight and output position, LayerNorms 4 per element, and the two matrix products inside attention nothing.
        full_macs: of all products: convolutions, linear layers and attention.
    """

    parameters: int = 0
    macs: int = 0
    full_macs: int = 0

    def __add__(self, other: "Cost") -> "Cost":
        return Cost(self.parameters + other.parameters, self.macs + other.macs, self.full_macs + other.full_macs)

    def times(self, calls: int) -> "Cost":
        """The cost of several calls; parameters count once."""
        return Cost(self.parameters, self.macs * calls, self.full_macs * calls)


def layer_costs(module: nn.Module, *inputs: Any, method: str = "__call__") -> dict[str, Cost]:
    """The cost of one call (of the entire batch) by path `a/b/c` of a layer or a parameter; nothing is computed.

    Args:
        module: a Flax module.
        *inputs: its inputs, as arrays or `jax.ShapeDtypeStruct`.
        method: the method to call.
    """
    costs: dict[str, Cost] = defaultdict(Cost)
    running: list[str] = []

    def count(call: Any, args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        layer, path = context.module, "/".join(context.module.path)
        outermost = path not in running  # a subclass that calls its parent's method counts once
        running.append(path)
        out = call(*args, **kwargs)
        running.pop()
        if context.method_name == "__call__" and outermost:
            if isinstance(layer, (nn.Conv, nn.Dense)):
                products = math.prod(out.shape[:-1]) * math.prod(layer.variables["params"]["kernel"].shape)
                costs[path] += Cost(0, products, products)
            elif isinstance(layer, LayerNorm):
                costs[path] += Cost(0, 4 * math.prod(out.shape))
            elif isinstance(layer, (Attention, SelfAttention, VAEAttention)):
                costs[path] += Cost(0, 0, _attention_products(*args))
        return out

    with intercepting(count):
        shapes = jax.eval_shape(lambda *args: module.init(jax.random.key(0), *args, method=method), *inputs)["params"]
    for path, leaf in trees.flatten(shapes).items():
        costs[path] += Cost(math.prod(leaf.shape))
    return dict(costs)


def _attention_products(x: jax.Array, context: jax.Array | None = None) -> int:
    """Multiply-adds of Q K^T and softmax(...) V for `x` [B, ..., C] and `context` [B, M, K]."""
    batch, *positions, channels = x.shape
    queries = math.prod(positions)
    keys = queries if context is None else context.shape[1]
    return 2 * batch * queries * keys * channels


@functools.cache  # tracing a U-Net takes seconds
def unet_layers(config: UNetConfig, latent_size: int) -> Mapping[str, Cost]:
    """The cost of a U-Net by path of a layer or parameter; arguments as `unet_cost`."""
    latent_size = -(-latent_size // config.downscale) * config.downscale
    return MappingProxyType(layer_costs(UNet(config), *example_inputs(config, 1, latent_size)))


def block_costs(config: UNetConfig, latent_size: int) -> dict[str, Cost]:
    """The cost of each block that can be removed (`replaceable`) in one call of the U-Net; arguments as `unet_cost`."""
    costs = dict.fromkeys(replaceable(config), Cost())
    for path, cost in unet_layers(config, latent_size).items():
        block = block_of(path)
        if block in costs:
            costs[block] += cost
    return costs


def unet_cost(config: UNetConfig, latent_size: int) -> dict[str, Cost]:
    """The cost of a U-Net by stage, with Diffusers' names.

    Other layers are under `input` (`conv_in` and embeddings) and `output` (`conv_norm_out`, `conv_out`).

    Args:
        config: the U-Net.
        latent_size: height and width of the latents; rounded up to a multiple of `config.downscale`.
    """
    groups = dict.fromkeys(("conv_in", "time_embedding", "add_embedding"), "input")
    groups |= dict.fromkeys(("conv_norm_out", "conv_out"), "output")
    costs = dict.fromkeys(("input", *config.stages(), "output"), Cost())
    for path, cost in unet_layers(config, latent_size).items():
        head = path.split("/", maxsplit=1)[0]
        costs[groups.get(head, dotted(head))] += cost
    return costs


@functools.cache
def text_encoder_cost(config: CLIPTextConfig) -> Cost:
    """The cost of one caption of maximum length."""
    tokens = jax.ShapeDtypeStruct((1, config.max_length), jnp.int32)
    return sum(layer_costs(CLIPTextEncoder(config), tokens).values(), Cost())


@functools.cache
def decoder_cost(config: VAEConfig, latent_size: int) -> Cost:
    """The cost of decoding one image, without the 1x1 convolution before the decoder, as in the paper."""
    latents = jax.ShapeDtypeStruct((1, latent_size, latent_size, config.latent_channels), jnp.float32)
    costs = layer_costs(VAE(config), latents, method="decode")
    return sum((cost for path, cost in costs.items() if path.startswith("decoder/")), Cost())


def image_cost(networks: Architectures, latent_size: int, unet_calls: int) -> dict[str, Cost]:
    """Cost by network; `U-Net` is one call, `image` is one image with `unet_calls` calls."""
    kind = networks.kind
    label = {name: network.label for name, network in kind.networks.items()}
    encoders = [name for name in networks.frozen if name != kind.autoencoder]
    costs = {label[name]: text_encoder_cost(networks.configs[name]) for name in encoders}
    costs[label[kind.denoiser]] = sum(unet_cost(networks.denoiser, latent_size).values(), Cost())
    costs["VAE decoder"] = decoder_cost(networks.configs[kind.autoencoder], latent_size)
    calls = {label[kind.denoiser]: unet_calls}
    return costs | {"image": sum((cost.times(calls.get(name, 1)) for name, cost in costs.items()), Cost())}
