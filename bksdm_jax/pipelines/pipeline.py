"""A pipeline in memory, with or without weights."""

import dataclasses
import functools
import hashlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.models.unet import Conditioning
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.pipelines.families import FAMILIES, STABLE_DIFFUSION, CaptionInputs, Family, Params
from bksdm_jax.pipelines.passthrough import Component
from bksdm_jax.pipelines.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class Network:
    """A network's config, parameters (nested by Flax names; empty if they weren't read), and `config.json`."""

    config: Any
    params: dict[str, Any]
    json: dict[str, Any]

    def weights_sha256(self) -> str:
        """SHA-256 of the parameters as float32, in the order of their names."""
        digest = hashlib.sha256()
        for name, leaf in sorted(trees.flatten(self.params).items()):
            digest.update(name.encode())
            digest.update(np.ascontiguousarray(leaf, "<f4"))
        return digest.hexdigest()


@dataclasses.dataclass(frozen=True)
class Architectures:
    """A pipeline without weights.

    Attributes:
        configs: network -> config.
        schedule: the noise schedule, and the denoiser's prediction type.
        family: a key of `FAMILIES`.
    """

    configs: Mapping[str, Any]
    schedule: ScheduleConfig
    family: str = STABLE_DIFFUSION

    @property
    def kind(self) -> Family:
        """The row of the family table."""
        return FAMILIES[self.family]

    @property
    def denoiser(self) -> UNetConfig:
        """The U-Net's architecture."""
        return self.configs[self.kind.denoiser]

    @property
    def frozen(self) -> tuple[str, ...]:
        """All networks but the denoiser."""
        return tuple(name for name in self.kind.networks if name != self.kind.denoiser)

    @property
    def factor(self) -> int:
        """Pixels per latent position along each side."""
        return self.configs[self.kind.autoencoder].factor

    @property
    def scaling_factor(self) -> float:
        """Factor from unscaled to scaled latents."""
        return self.configs[self.kind.autoencoder].scaling_factor

    @property
    def resolution(self) -> int:
        """Height and width in pixels that the denoiser was made for."""
        return (self.denoiser.sample_size or 64) * self.factor

    def latent_shape(self, height: int, width: int | None = None) -> tuple[int, int, int]:
        """Latent shape [h, w, C] of an image of `height` x `width` pixels (None: a square)."""
        size = (height // self.factor, (height if width is None else width) // self.factor)
        return *size, self.configs[self.kind.autoencoder].latent_channels

    def with_denoiser(self, config: UNetConfig) -> "Architectures":
        """A copy with another U-Net."""
        return dataclasses.replace(self, configs=dict(self.configs) | {self.kind.denoiser: config})

    def condition(self, params: Params, dtype: jnp.dtype, inputs: Any) -> Conditioning:
        """The denoiser's conditioning, arrays [B, ...], from caption inputs [B, ...]."""
        return self.kind.condition(self.configs, params, dtype, inputs)

    def encode(self, params: Params, dtype: jnp.dtype, images: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Images [B, H, W, 3] in [-1, 1] -> mean and log-variance of their unscaled latents [B, h, w, C]."""
        return self.kind.encode(self.configs, params, dtype, images)

    def decode(self, params: Params, dtype: jnp.dtype, latents: jax.Array) -> jax.Array:
        """Scaled latents [B, h, w, C] -> images [B, H, W, 3], nominally in [-1, 1]."""
        return self.kind.decode(self.configs, params, dtype, latents / self.scaling_factor)

    def parameter_shapes(self) -> dict[str, Any]:
        """Network -> parameters as nested `jax.ShapeDtypeStruct`."""
        return {name: kind.parameter_shapes(self.configs[name]) for name, kind in self.kind.networks.items()}


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A loaded pipeline; parameters are numpy arrays in the dtypes of the files.

    Attributes:
        path: the folder or file that it was read from.
        networks: by folder name.
        tokenizers: by folder name.
        schedule: that of the denoiser's training.
        scheduler: its `scheduler_config.json`.
        components: `safety_checker` and `feature_extractor`, which are only copied.
        licence: from the model card: `license`, `license_name`, `license_link`, where present.
        family: a key of `FAMILIES`.
        allow_non_finite: its weights may hold NaN or infinities, also when they are written.
        loras: what was merged into the networks, for the model card.
    """

    path: Path
    networks: Mapping[str, Network]
    tokenizers: Mapping[str, Tokenizer]
    schedule: ScheduleConfig
    scheduler: Mapping[str, Any]
    components: Mapping[str, Component] = dataclasses.field(default_factory=dict)
    licence: Mapping[str, str] = dataclasses.field(default_factory=dict)
    family: str = STABLE_DIFFUSION
    allow_non_finite: bool = False
    loras: tuple[str, ...] = ()

    @property
    def architectures(self) -> Architectures:
        """The pipeline without weights."""
        configs = {name: network.config for name, network in self.networks.items()}
        return Architectures(configs, self.schedule, self.family)

    @property
    def denoiser(self) -> Network:
        """The U-Net."""
        return self.networks[FAMILIES[self.family].denoiser]

    @property
    def params(self) -> dict[str, Any]:
        """Network -> parameters."""
        return {name: network.params for name, network in self.networks.items()}

    def with_denoiser(self, config: UNetConfig, params: Mapping[str, Any]) -> "Pipeline":
        """A copy with another U-Net; raises `InputError` if no `config.json` can express it."""
        name = FAMILIES[self.family].denoiser
        network = Network(config, dict(params), FAMILIES[self.family].networks[name].to_json(config))
        return dataclasses.replace(self, networks=dict(self.networks) | {name: network})

    @property
    def caption_inputs(self) -> Callable[[Sequence[str]], CaptionInputs]:
        """Captions -> the networks' inputs, arrays [N, ...]: token ids int32 [N, T] under `tokens`."""
        return functools.partial(FAMILIES[self.family].caption_inputs, self.tokenizers)  # workers get no weights

    @waiting("hashing the model's weights", QUIET)
    def identity(self) -> dict[str, str]:
        """SHA-256 of all that decides the pipeline's images: of each network, each tokenizer, and the scheduler."""
        parts = {name: [network.weights_sha256(), network.config] for name, network in self.networks.items()}
        parts |= {name: [tokenizer.sha256()] for name, tokenizer in self.tokenizers.items()} | {
            "scheduler": [self.schedule]
        }
        return {name: hashlib.sha256(repr(part).encode()).hexdigest() for name, part in parts.items()}

    def empty_inputs(self) -> CaptionInputs:
        """The inputs for the empty caption, without a batch dimension."""
        return {name: np.asarray(value)[0] for name, value in self.caption_inputs([""]).items()}


def require_agreement(networks: Architectures, source: str) -> None:
    """Raises `InputError` if the networks aren't the family's, or don't fit each other; `source` is named."""
    if foreign := networks.kind.foreign(networks.configs):
        raise InputError(f"{source}: {foreign}; expected text-to-image: {networks.kind.pipeline_class}")
    for what, ours, key, theirs in networks.kind.pairs_that_agree(networks.configs):
        if ours != theirs:
            raise InputError(f"{source}: the {what} is {ours} but the {key} is {theirs}")


def require_vocabulary(pipeline: Pipeline) -> None:
    """Raises `InputError` if a tokenizer knows more tokens than the network that takes them."""
    for folder, encoder in FAMILIES[pipeline.family].tokenizers.items():
        known, size = len(pipeline.tokenizers[folder]), pipeline.networks[encoder].config.vocab_size
        if known > size:
            raise InputError(
                f"{pipeline.path}: the {folder} knows {known} tokens, the {encoder}'s vocab_size is {size}"
            )
