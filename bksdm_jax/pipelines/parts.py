"""A pipeline with parts of other files: another autoencoder, fewer text layers, tokens of textual inversion."""

import dataclasses
import re

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError, whole_number
from bksdm_jax.pipelines.autoencoder import load_autoencoder
from bksdm_jax.pipelines.config import PartsConfig
from bksdm_jax.pipelines.embeddings import changed_json, with_embeddings
from bksdm_jax.pipelines.families import FAMILIES
from bksdm_jax.pipelines.pipeline import Network, Pipeline, require_agreement

_LAYER = re.compile(r"text_model/encoder/layers/(\d+)/")


def with_parts(pipeline: Pipeline, parts: PartsConfig) -> Pipeline:
    """The pipeline, loaded with its weights, with these parts.

    Raises `InputError` if a file can't be read, or a part doesn't fit.
    """
    kind = FAMILIES[pipeline.family]
    networks, tokenizers = dict(pipeline.networks), dict(pipeline.tokenizers)
    if parts.vae:
        new = load_autoencoder(parts.vae, pipeline.allow_non_finite)
        networks[kind.autoencoder] = _fitting(new, networks[kind.autoencoder], parts.vae)
    for folder, encoder in kind.tokenizers.items():
        networks[encoder] = _without_last(networks[encoder], parts.clip_skip)
        if parts.embeddings:
            networks[encoder], tokenizers[folder] = with_embeddings(
                networks[encoder], tokenizers[folder], parts.embeddings, pipeline.allow_non_finite
            )
    changed = dataclasses.replace(pipeline, networks=networks, tokenizers=tokenizers)
    if parts.vae:
        require_agreement(changed.architectures, f"vae: {parts.vae}")
    return changed


def _fitting(new: Network, old: Network, source: str) -> Network:
    """`new`; raises `InputError` if its images have other channels than those of `old`."""
    for key in ("in_channels", "out_channels"):
        found, wanted = getattr(new.config, key), getattr(old.config, key)
        if found != wanted:
            raise InputError(f"vae: {source}: {key} is {found}; expected {wanted}, as the model's own")
    return new


def _without_last(encoder: Network, count: int) -> Network:
    """A CLIP text encoder without its last `count` layers."""
    layers = encoder.config.layers - whole_number("config", "clip_skip", count, 0, encoder.config.layers - 1)
    if count == 0:
        return encoder
    flat = {
        path: leaf
        for path, leaf in trees.flatten(encoder.params).items()
        if not (match := _LAYER.match(path)) or int(match[1]) < layers
    }
    config = dataclasses.replace(encoder.config, layers=layers)
    return Network(config, trees.unflatten(flat), changed_json(encoder.json, num_hidden_layers=layers))
