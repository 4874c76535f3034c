"""What making one image costs: text encoder, U-Net and decoder together, a teacher's beside its students'."""

import functools
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from bksdm_jax.cost.counts import NOTHING, Cost, layer_counts, total, unet_cost
from bksdm_jax.models.clip import CLIPTextConfig, CLIPTextEncoder
from bksdm_jax.models.vae import VAE, VAEConfig
from bksdm_jax.pipelines.pipeline import Architectures


@functools.cache
def text_encoder_cost(config: CLIPTextConfig) -> Cost:
    """One caption of full length."""
    tokens = jax.ShapeDtypeStruct((1, config.max_length), jnp.int32)
    return total(layer_counts(CLIPTextEncoder(config), tokens))


@functools.cache
def decoder_cost(config: VAEConfig, latent_size: int) -> Cost:
    """One image; the 1x1 convolution before the decoder (`post_quant_conv`) isn't counted, as in the paper."""
    latents = jax.ShapeDtypeStruct((1, latent_size, latent_size, config.latent_channels), jnp.float32)
    return total(layer_counts(VAE(config), latents, method="decode"), "decoder/")


def image_cost(networks: Architectures, latent_size: int, unet_calls: int) -> dict[str, Cost]:
    """Costs by network for one image; `U-Net` is that of one call, `image` counts `unet_calls` of them."""
    kind = networks.kind
    label = {name: network.label for name, network in kind.networks.items()}
    encoders = [name for name in networks.frozen if name != kind.autoencoder]
    costs = {label[name]: text_encoder_cost(networks.configs[name]) for name in encoders}
    costs[label[kind.denoiser]] = sum(unet_cost(networks.denoiser, latent_size).values(), NOTHING)
    costs["VAE decoder"] = decoder_cost(networks.configs[kind.autoencoder], latent_size)
    calls = {label[kind.denoiser]: unet_calls}
    return costs | {"image": sum((cost.times(calls.get(name, 1)) for name, cost in costs.items()), NOTHING)}


def image_table(models: Mapping[str, Architectures], latent_size: int, unet_calls: int) -> str:
    """Parameters and multiply-adds of every model and network, with what is left of the first model's.

    Args:
        models: name -> networks; the first is the one that the others are compared with.
        latent_size: height and width of the latent.
        unet_calls: U-Net calls that make one image.
    """
    costs = {name: image_cost(networks, latent_size, unet_calls) for name, networks in models.items()}
    first = next(iter(costs.values()))
    lines = [_HEADING.format("", "", "parameters", "left", "GMACs (THOP)", "left", "GMACs (full)", "left")]
    for name, cost in costs.items():
        labels = [name, *[""] * (len(cost) - 1)]
        for label, (part, ours) in zip(labels, cost.items(), strict=True):
            lines.append(_row(label, part, ours, first[part]))
    return "\n".join(line.rstrip() for line in lines)


_HEADING = "{:<12}{:<14}{:>15}{:>8}{:>14}{:>8}{:>14}{:>8}"


def _row(label: str, part: str, ours: Cost, whole: Cost) -> str:
    cells: Sequence[str] = [
        f"{ours.parameters:,}",
        f"{ours.parameters / whole.parameters:.1%}",
        _giga(ours.macs),
        f"{ours.macs / whole.macs:.1%}",
        _giga(ours.full_macs),
        f"{ours.full_macs / whole.full_macs:.1%}",
    ]
    return _HEADING.format(label, part, *cells)


def _giga(count: int) -> str:
    return f"{count / 1e9:,.2f}" if count >= 1e9 else f"{count / 1e9:.5f}"
