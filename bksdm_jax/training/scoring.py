"""Scores during training: of images that the moving average makes of fixed prompts from fixed noise."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from bksdm_jax.base.distributed import barrier, compiled_together, is_first
from bksdm_jax.base.errors import InputError, NotFiniteError
from bksdm_jax.evaluation.scorer import Scorer
from bksdm_jax.metrics.config import MetricsConfig
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.generate import EncodeCaptions, generate_images, make_generate
from bksdm_jax.training.config import ScoringConfig
from bksdm_jax.training.sharding import replicated
from bksdm_jax.training.state import TrainState
from bksdm_jax.training.task import Evaluator
from bksdm_jax.training.train_step import Frozen

SCORES = "scores"
"""The evaluator's name, and so that of its table."""


def scoring(
    config: ScoringConfig,
    metrics: Sequence[str],
    caption_inputs: EncodeCaptions,
    prompts: Sequence[str],
    sampler: SamplerConfig,
    networks: Architectures,
    dtype: jnp.dtype,
    mesh: Mesh,
) -> Evaluator:
    """Scores by name, with `NAME/low` and `NAME/high` where there is an interval.

    All processes make the images, and the first one scores them; it loads the scoring networks and the reference now,
    once, and scores grey images, so that what can't be scored is told before the first update.

    Args:
        config, metrics: what to measure and how.
        caption_inputs: of the pipeline.
        prompts: one per image.
        sampler: of the images.
        networks: of the trained pipeline.
        dtype: of sampling.
        mesh: of training; images are split over all its devices.

    Raises:
        InputError: weights or a reference can't be used, or the metrics don't take such prompts or images.
    """
    size, count = sampler.resolution, len(prompts)
    per_call = mesh.size * min(config.batch_size, -(-count // mesh.size))
    split, make = NamedSharding(mesh, PartitionSpec(("data", "fsdp"))), make_generate(networks, sampler, dtype)

    def generate(params: dict[str, jax.Array], captions: object, negative: object, keys: jax.Array) -> Any:
        return make(params, *jax.lax.with_sharding_constraint((captions,), split), negative, keys)

    program = compiled_together(jax.jit(generate, out_shardings=replicated(mesh)), "the images to score")
    scorer = _Scores(config.of(metrics), prompts) if is_first() else None
    if scorer:
        scorer([np.full((size, size, 3), 128, np.uint8)] * count)
    barrier("ready to score")

    def run(step: int, state: TrainState, frozen: Frozen) -> Mapping[str, float]:
        del step
        params = {networks.kind.denoiser: state.average} | {name: frozen[name] for name in networks.frozen}
        made = generate_images(program, params, caption_inputs, sampler, list(enumerate(prompts)), per_call)
        images = [image for _, image in made]
        try:
            return scorer(images) if scorer else {}
        finally:
            barrier("scored")  # also if scoring has failed: the others wait

    return Evaluator(config.every, run)


class _Scores:
    """Images, uint8 [H, W, 3], of fixed captions -> scores by name."""

    def __init__(self, config: MetricsConfig, captions: Sequence[str]) -> None:
        self._captions, self._batch = captions, config.scoring_batch_size * jax.local_device_count()
        self._scorer = Scorer(config)

    def __call__(self, images: Sequence[np.ndarray]) -> dict[str, float]:
        with tempfile.TemporaryDirectory() as folder:
            self._scorer.restart(Path(folder), {})
            for first in range(0, len(images), self._batch):
                chosen = slice(first, first + self._batch)
                self._scorer.add(first, images[chosen], self._captions[chosen])
            found = {}
            try:
                scores = self._scorer.scores()
            except NotFiniteError as error:  # of these images; the weights may be well
                raise InputError(str(error)) from error
            for name, score in scores.items():
                found[name] = score["value"]
                ends = {f"{name}/{end}": score[end] for end in ("low", "high")}
                found |= {key: value for key, value in ends.items() if value is not None}
        return found
