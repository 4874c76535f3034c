"""The families of pipelines: their networks, how these work together, and the layout of their files."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from bksdm_jax.formats.clip_json import clip_text_from_transformers, clip_text_to_transformers
from bksdm_jax.formats.locate import DIFFUSERS_STEMS, TRANSFORMERS_STEMS
from bksdm_jax.formats.missing_blocks import unet_from_json, unet_to_json
from bksdm_jax.formats.old_configs import corrected_unet
from bksdm_jax.formats.vae_json import vae_from_diffusers, vae_to_diffusers
from bksdm_jax.models.clip import CLIPTextEncoder, clip_text_parameter_shapes
from bksdm_jax.models.tiny_vae import TinyVAE, TinyVAEConfig, tiny_vae_parameter_shapes
from bksdm_jax.models.unet import Conditioning, UNet, parameter_shapes
from bksdm_jax.models.vae import VAE, VAEConfig, vae_parameter_shapes
from bksdm_jax.pipelines.tokenizer import Tokenizer

Configs = Mapping[str, Any]
"""Network -> its config."""
Params = Mapping[str, Any]
"""Network -> its parameters, nested by Flax names."""
CaptionInputs = dict[str, np.ndarray]
"""Captions as the networks take them, arrays [N, ...] by name: token ids under `tokens`."""


@dataclasses.dataclass(frozen=True)
class NetworkType:
    """One network of a family.

    Attributes:
        label: its name in tables.
        module: (config, dtype) -> Flax module.
        from_json: (`config.json`, file name for errors) -> config; raises `InputError`.
        to_json: config -> `config.json`; raises `InputError` if it can't be expressed.
        parameter_shapes: config -> parameters as nested `jax.ShapeDtypeStruct`.
        stems: suffix of a weights file -> file name without it.
        corrected: (`config.json`, file name) -> the same as Diffusers' pipeline takes it.
        library, class_name: its entry in `model_index.json`.
    """

    label: str
    module: Callable[[Any, jnp.dtype], nn.Module]
    from_json: Callable[[Mapping[str, Any], str], Any]
    to_json: Callable[[Any], dict[str, Any]]
    parameter_shapes: Callable[[Any], dict[str, Any]]
    stems: Mapping[str, str]
    library: str
    class_name: str
    corrected: Callable[[Mapping[str, Any], str], dict[str, Any]] = lambda json, _: dict(json)


@dataclasses.dataclass(frozen=True)
class Family:
    """A family of pipelines. Networks are named by their folders.

    Attributes:
        pipeline_class: Diffusers' class.
        networks: name -> network.
        denoiser: the network that is called at every sampling step; it is pruned and distilled.
        autoencoder: the network whose config has `scaling_factor`, `factor` and `latent_channels`.
        tokenizers: folder of each tokenizer -> the network that takes its tokens.
        caption_inputs: (tokenizers, captions) -> inputs of `condition`.
        caption_shapes: configs -> shapes and dtypes of one caption's inputs.
        condition: (configs, params, dtype, caption inputs [B, ...]) -> the denoiser's conditioning, arrays [B, ...].
        encode: (configs, params, dtype, images [B, H, W, 3] in [-1, 1]) -> mean and log-variance, unscaled latents.
        decode: (configs, params, dtype, unscaled latents) -> images [B, H, W, 3], nominally in [-1, 1].
        foreign: configs -> what such a pipeline is instead, as in "an inpainting model"; empty: one of this family.
        pairs_that_agree: configs -> (network and key, value, other network and key, value) that must be equal.
    """

    pipeline_class: str
    networks: Mapping[str, NetworkType]
    denoiser: str
    autoencoder: str
    tokenizers: Mapping[str, str]
    caption_inputs: Callable[[Mapping[str, Tokenizer], Sequence[str]], CaptionInputs]
    caption_shapes: Callable[[Configs], dict[str, jax.ShapeDtypeStruct]]
    condition: Callable[[Configs, Params, jnp.dtype, Any], Conditioning]
    encode: Callable[[Configs, Params, jnp.dtype, jax.Array], tuple[jax.Array, jax.Array]]
    decode: Callable[[Configs, Params, jnp.dtype, jax.Array], jax.Array]
    foreign: Callable[[Configs], str]
    pairs_that_agree: Callable[[Configs], Iterator[tuple[str, Any, str, Any]]]


def autoencoder(config: VAEConfig | TinyVAEConfig, dtype: jnp.dtype) -> nn.Module:
    """The module with methods `encode` and `decode`."""
    return TinyVAE(config, dtype) if isinstance(config, TinyVAEConfig) else VAE(config, dtype)


def _autoencoder_shapes(config: VAEConfig | TinyVAEConfig) -> dict[str, Any]:
    is_tiny = isinstance(config, TinyVAEConfig)
    return tiny_vae_parameter_shapes(config) if is_tiny else vae_parameter_shapes(config)


_DIFFUSERS = (DIFFUSERS_STEMS, "diffusers")
UNET = NetworkType(
    "U-Net",
    UNet,
    unet_from_json,
    unet_to_json,
    parameter_shapes,
    *_DIFFUSERS,
    "UNet2DConditionModel",
    corrected_unet,
)
AUTOENCODER = NetworkType(
    "VAE", autoencoder, vae_from_diffusers, vae_to_diffusers, _autoencoder_shapes, *_DIFFUSERS, "AutoencoderKL"
)
CLIP_TEXT = NetworkType(
    "text encoder",
    CLIPTextEncoder,
    clip_text_from_transformers,
    clip_text_to_transformers,
    clip_text_parameter_shapes,
    TRANSFORMERS_STEMS,
    "transformers",
    "CLIPTextModel",
)


def encode_by_vae(configs: Configs, params: Params, dtype: jnp.dtype, images: jax.Array) -> tuple[jax.Array, jax.Array]:
    """`Family.encode` by the network `vae`."""
    return autoencoder(configs["vae"], dtype).apply({"params": params["vae"]}, images, method="encode")


def decode_by_vae(configs: Configs, params: Params, dtype: jnp.dtype, latents: jax.Array) -> jax.Array:
    """`Family.decode` by the network `vae`."""
    return autoencoder(configs["vae"], dtype).apply({"params": params["vae"]}, latents, method="decode")


def _tokens(tokenizers: Mapping[str, Tokenizer], captions: Sequence[str]) -> CaptionInputs:
    return {"tokens": tokenizers["tokenizer"](captions)}


def _token_shapes(configs: Configs) -> dict[str, jax.ShapeDtypeStruct]:
    return {"tokens": jax.ShapeDtypeStruct((configs["text_encoder"].max_length,), jnp.int32)}


def _text_states(configs: Configs, params: Params, dtype: jnp.dtype, inputs: Any) -> Conditioning:
    encoder = CLIPTextEncoder(configs["text_encoder"], dtype)
    return {"context": encoder.apply({"params": params["text_encoder"]}, inputs["tokens"])}


_MORE_CHANNELS = {9: "an inpainting model", 5: "a depth-to-image model", 8: "an InstructPix2Pix model"}


def _not_stable_diffusion(configs: Configs) -> str:
    if configs["unet"].added:
        return "an SDXL model"
    return _MORE_CHANNELS.get(configs["unet"].in_channels, "") if configs["vae"].latent_channels == 4 else ""


def _stable_diffusion_pairs(configs: Configs) -> Iterator[tuple[str, Any, str, Any]]:
    unet, vae, text = (configs[name] for name in ("unet", "vae", "text_encoder"))
    yield "unet's cross_attention_dim", unet.context_width, "text_encoder's hidden_size", text.width
    yield "unet's in_channels", unet.in_channels, "vae's latent_channels", vae.latent_channels
    yield "unet's out_channels", unet.out_channels, "vae's latent_channels", vae.latent_channels


STABLE_DIFFUSION = "stable_diffusion"
FAMILIES = {
    STABLE_DIFFUSION: Family(
        pipeline_class="StableDiffusionPipeline",
        networks={"unet": UNET, "vae": AUTOENCODER, "text_encoder": CLIP_TEXT},
        denoiser="unet",
        autoencoder="vae",
        tokenizers={"tokenizer": "text_encoder"},
        caption_inputs=_tokens,
        caption_shapes=_token_shapes,
        condition=_text_states,
        encode=encode_by_vae,
        decode=decode_by_vae,
        foreign=_not_stable_diffusion,
        pairs_that_agree=_stable_diffusion_pairs,
    ),
}
"""Name -> family. `stable_diffusion`: SD 1.x and 2.x."""
