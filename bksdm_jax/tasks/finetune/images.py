"""A run's images as its loader takes them: read at every update, or encoded once."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from bksdm_jax.base.memory import explain_out_of_memory
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.data.kept_latents import KeptConfig, keep_latents
from bksdm_jax.data.latents import latent_identity, require_identity
from bksdm_jax.data.sources import is_cached
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.tasks.finetune.config import FinetuneConfig

_SEEDS = 2**32


def loaded(config: FinetuneConfig, pipeline: Pipeline, examples: Sequence[Any], where: AnyPath | None) -> Sequence[Any]:
    """The examples, with latents in memory if they are kept; `where` they come from is for errors.

    Raises `InputError` if an image can't be used, or cached latents are another model's.
    """
    if is_cached(examples):
        require_identity(where, latent_identity(pipeline, config.resolution, config.flip))
    elif config.cache_latents:
        crops = config.crops if config.random_crop else 1
        kept = KeptConfig(config.resolution, config.flip, crops, config.seed, config.dtype)
        with explain_out_of_memory("set cache_latents to no, or dtype to bfloat16"):
            return keep_latents(examples, pipeline, kept, str(where))
    return examples


def loaded_prior(
    config: FinetuneConfig, pipeline: Pipeline, examples: Sequence[Any], where: AnyPath | None
) -> Sequence[Any]:
    """The same for class images, with crops of their own."""
    return loaded(dataclasses.replace(config, seed=class_seed(config.seed)), pipeline, examples, where)


def class_seed(seed: int) -> int:
    """The seed of the class images' order, crops and flips."""
    return (seed + _SEEDS // 2) % _SEEDS
