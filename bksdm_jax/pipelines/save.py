"""Writes a pipeline in one of several formats and dtypes, with its model card."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import write_json
from bksdm_jax.base.finite import count_non_finite
from bksdm_jax.base.folders import atomic_folder
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.formats.missing_blocks import has_missing_blocks, require_all_blocks, unet_to_json
from bksdm_jax.formats.scheduler_json import require_flax_schedule
from bksdm_jax.formats.stored import FLOATS
from bksdm_jax.formats.unet_json import require_flax_expressible
from bksdm_jax.formats.weights import require_finite
from bksdm_jax.models.tiny_vae import TinyVAEConfig
from bksdm_jax.pipelines.config import FILES, FOLDERS, SaveConfig, require_save
from bksdm_jax.pipelines.folder import COPIED_FORMATS, write_folder
from bksdm_jax.pipelines.model_card import CONFIGS, CardFacts, model_card
from bksdm_jax.pipelines.passthrough import Extras
from bksdm_jax.pipelines.pipeline import Architectures, Network, Pipeline
from bksdm_jax.pipelines.write_single_file import require_single_file, write_single_file

SINGLE_FILE = "model.safetensors"
"""The file name of a single-file checkpoint in its folder."""


def wanted_extras(config: SaveConfig) -> Extras:
    """The files to download with a teacher from the hub."""
    copied = config.safety_checker and config.format in FOLDERS
    return Extras(card=True, components=COPIED_FORMATS[FOLDERS[config.format]] if copied else ())


def require_savable(networks: Architectures, config: SaveConfig) -> None:
    """Raises `InputError` for an unknown setting, or networks that the format can't express."""
    require_save(config)
    unet_to_json(networks.denoiser)
    if isinstance(networks.configs[networks.kind.autoencoder], TinyVAEConfig):
        raise InputError(f"format: {config.format} can't hold an AutoencoderTiny as vae; save without it")
    if config.format != "safetensors":
        require_all_blocks(networks.denoiser, config.format)
    if config.format == "flax":
        require_flax_expressible(networks.denoiser)
        require_flax_schedule(networks.schedule)
    if config.format in FILES:
        require_single_file(networks, FILES[config.format])


@waiting("writing the model", QUIET)
def write_pipeline(
    target: Path,
    pipeline: Pipeline,
    config: SaveConfig,
    facts: CardFacts | None = None,
    extra: Mapping[str, Any] | None = None,
    replace: bool = True,
) -> Path:
    """Writes a pipeline to a folder, atomically.

    Args:
        target: the folder.
        pipeline, config: what to write, and how.
        facts: for the model card, `README.md`; None: no card.
        extra: file name -> content of additional JSON files.
        replace: an existing folder is replaced as a whole; False: that is an error.

    Returns:
        the path of the model: the folder, or the single file in it.

    Raises:
        InputError: the format can't express the pipeline, a number isn't finite or out of the dtype's range, or the
            folder can't be written.
    """
    require_savable(pipeline.architectures, config)
    if not pipeline.allow_non_finite:
        for name, network in pipeline.networks.items():
            require_finite(target, name, network.params)
    if has_missing_blocks(pipeline.denoiser.config):
        logging.warning("%s: only bksdm_jax can read this model: Diffusers has no U-Net with such gaps", target)
    if not config.safety_checker:
        pipeline = dataclasses.replace(pipeline, components={})
    if config.dtype:
        cast = {name: _cast(network, name, config.dtype) for name, network in pipeline.networks.items()}
        pipeline = dataclasses.replace(pipeline, networks=cast)
    with atomic_folder(target, replace) as temporary:
        if config.format in FOLDERS:
            write_folder(temporary, pipeline, FOLDERS[config.format])
        else:
            write_single_file(temporary / SINGLE_FILE, pipeline, FILES[config.format])
            (temporary / CONFIGS).mkdir()
            without = dataclasses.replace(pipeline, components={})
            write_folder(temporary / CONFIGS, without, ".safetensors", weights=False)
        if facts is not None:
            (temporary / "README.md").write_text(model_card(pipeline, facts, config.format), encoding="utf-8")
        for name, value in (extra or {}).items():
            write_json(temporary / name, value)
    return target / SINGLE_FILE if config.format in FILES else target


def _cast(network: Network, name: str, dtype: str) -> Network:
    def to(path: str, leaf: Any) -> np.ndarray:
        leaf = np.asarray(leaf)
        with np.errstate(over="ignore"):
            cast = leaf.astype(FLOATS[dtype])
        if count_non_finite(cast) and not count_non_finite(leaf):
            raise InputError(
                f"save_dtype: {name}'s {path} is out of range of {dtype} (up to {np.abs(leaf).max():.3g}); "
                "use bfloat16 or float32"
            )
        return cast

    flat = {path: to(path, leaf) for path, leaf in trees.flatten(network.params).items()}
    return dataclasses.replace(network, params=trees.unflatten(flat))
