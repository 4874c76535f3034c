"""A Stable Diffusion pipeline in memory, wherever it was read from."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.models.clip import CLIPTextConfig
from bksdm_jax.models.unet import UNetConfig
from bksdm_jax.models.vae import VAEConfig
from bksdm_jax.pipelines.passthrough import Part
from bksdm_jax.pipelines.tokenizer import Tokenizer

NETWORKS = ("unet", "vae", "text_encoder")
"""The networks of a pipeline, under the names of their folders."""


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of a pipeline: its architecture, its parameters (nested by Flax names), its `config.json`.

    Parameters are empty where the pipeline was read without them.
    """

    config: Any
    params: dict[str, Any]
    json: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Architectures:
    """The networks of a pipeline without their weights, and the schedule they were trained for."""

    unet: UNetConfig
    vae: VAEConfig
    text_encoder: CLIPTextConfig
    schedule: ScheduleConfig


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A loaded pipeline; parameters are numpy arrays in the dtypes of the files.

    Attributes:
        place: the folder or file that it was read from.
        unet_files: where the U-Net's weights were.
        unet, vae, text_encoder: the networks.
        tokenizer: captions to token ids.
        schedule: what the U-Net was trained for.
        scheduler: the `scheduler_config.json` that says so.
        parts: what is only copied, `safety_checker` and `feature_extractor`.
        licence: what the model card says of it: some of `license`, `license_name`, `license_link`.
    """

    place: Path
    unet_files: tuple[Path, ...]
    unet: Network
    vae: Network
    text_encoder: Network
    tokenizer: Tokenizer
    schedule: ScheduleConfig
    scheduler: Mapping[str, Any]
    parts: Mapping[str, Part] = dataclasses.field(default_factory=dict)
    licence: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def architectures(self) -> Architectures:
        """The same without weights."""
        return Architectures(self.unet.config, self.vae.config, self.text_encoder.config, self.schedule)

    def resolution(self) -> int:
        """Height and width in pixels that the U-Net was made for."""
        return (self.unet.config.sample_size or 64) * self.vae.config.factor


def require_agreement(pipeline: Pipeline) -> None:
    """Holds the networks' widths to each other; raises `InputError` with the two that don't agree."""
    unet, vae, text = pipeline.unet.config, pipeline.vae.config, pipeline.text_encoder.config
    for what, ours, key, theirs in (
        ("cross_attention_dim", unet.context_width, "text_encoder's hidden_size", text.width),
        ("in_channels", unet.in_channels, "vae's latent_channels", vae.latent_channels),
        ("out_channels", unet.out_channels, "vae's latent_channels", vae.latent_channels),
    ):
        if ours != theirs:
            raise InputError(f"{pipeline.place}: the unet's {what} is {ours} but the {key} is {theirs}")
    if len(pipeline.tokenizer) > text.vocab_size:
        raise InputError(
            f"{pipeline.place}: the tokenizer knows {len(pipeline.tokenizer)} tokens, "
            f"the text_encoder's vocab_size is {text.vocab_size}"
        )
