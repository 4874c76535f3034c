"""The cost of generating one image with text encoder, U-Net and decoder."""

import dataclasses
import functools
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from bksdm_jax.cost.counts import NOTHING, Cost, layer_counts, total, unet_cost
from bksdm_jax.models.clip import CLIPTextConfig, CLIPTextEncoder
from bksdm_jax.models.vae import VAE, VAEConfig
from bksdm_jax.pipelines.pipeline import Architectures


@functools.cache
def text_encoder_cost(config: CLIPTextConfig) -> Cost:
    """The cost of one caption of maximum length."""
    tokens = jax.ShapeDtypeStruct((1, config.max_length), jnp.int32)
    return total(layer_counts(CLIPTextEncoder(config), tokens))


@functools.cache
def decoder_cost(config: VAEConfig, latent_size: int) -> Cost:
    """The cost of decoding one image, without the 1x1 convolution before the decoder, as in the paper."""
    latents = jax.ShapeDtypeStruct((1, latent_size, latent_size, config.latent_channels), jnp.float32)
    return total(layer_counts(VAE(config), latents, method="decode"), "decoder/")


def image_cost(networks: Architectures, latent_size: int, unet_calls: int) -> dict[str, Cost]:
    """Cost by network; `U-Net` is one call, `image` is one image with `unet_calls` calls."""
    kind = networks.kind
    label = {name: network.label for name, network in kind.networks.items()}
    encoders = [name for name in networks.frozen if name != kind.autoencoder]
    costs = {label[name]: text_encoder_cost(networks.configs[name]) for name in encoders}
    costs[label[kind.denoiser]] = sum(unet_cost(networks.denoiser, latent_size).values(), NOTHING)
    costs["VAE decoder"] = decoder_cost(networks.configs[kind.autoencoder], latent_size)
    calls = {label[kind.denoiser]: unet_calls}
    return costs | {"image": sum((cost.times(calls.get(name, 1)) for name, cost in costs.items()), NOTHING)}


def image_table(models: Mapping[str, Architectures], latent_size: int, unet_calls: int) -> str:
    """Parameters and multiply-adds of models by network, with their share of the first model's.

    Args:
        models: name -> networks; the first is the reference.
        latent_size: height and width of the latents.
        unet_calls: U-Net calls per image.
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


def _row(label: str, part: str, ours: Cost, reference: Cost) -> str:
    shown = (f"{ours.parameters:,}", _giga(ours.macs), _giga(ours.full_macs))
    pairs = zip(shown, dataclasses.astuple(ours), dataclasses.astuple(reference), strict=True)
    return _HEADING.format(label, part, *(cell for text, a, b in pairs for cell in (text, f"{a / b:.1%}")))


def _giga(count: int) -> str:
    return f"{count / 1e9:,.2f}" if count >= 1e9 else f"{count / 1e9:.5f}"
