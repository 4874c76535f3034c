"""Sample grids: images of several networks from the same prompts and starting noise."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bksdm_jax.base.distributed import compiled_together, is_first
from bksdm_jax.base.images import grid, save_png
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.generate import EncodeCaptions, Generate, generate_images, make_generate
from bksdm_jax.training.sharding import replicated
from bksdm_jax.training.state import TrainState
from bksdm_jax.training.task import Evaluator
from bksdm_jax.training.train_step import Frozen


def sample_grids(
    folder: Path,
    caption_inputs: EncodeCaptions,
    prompts: Sequence[str],
    sampler: SamplerConfig,
    rows: Mapping[str, Architectures],
    dtype: jnp.dtype,
    mesh: Mesh,
    every: int,
) -> Evaluator:
    """Draws `step_*.png`: a row per frozen denoiser, then one from the moving average and one from the weights.

    `rows` are the networks of each frozen denoiser, by its name in `frozen`, and under `""` those of the trained one;
    each prompt makes a column. Nothing is compiled before the first grid. Raises `InputError` for unusable settings.
    """
    numbered = list(enumerate(prompts))
    programs = {
        name: compiled_together(
            jax.jit(make_generate(networks, sampler, dtype), out_shardings=replicated(mesh)),
            f"sample grids of the {name or 'trained network'}",
        )
        for name, networks in rows.items()
    }
    denoiser = next(iter(rows.values())).kind.denoiser
    fixed: dict[str, np.ndarray] = {}

    def row(generate: Generate, params: dict[str, Any]) -> np.ndarray:
        images = generate_images(generate, params, caption_inputs, sampler, numbered, len(numbered))
        return np.stack([image for _, image in images])  # [N, H, W, 3]

    def draw(step: int, state: TrainState, frozen: Frozen) -> dict[str, float]:
        others = {name: params for name, params in frozen.items() if name not in rows}
        for name in rows:
            if name and name not in fixed:
                fixed[name] = row(programs[name], {denoiser: frozen[name], **others})
        trained = [row(programs[""], {denoiser: params, **others}) for params in (state.ema, state.params)]
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            save_png(folder / f"step_{step:06d}.png", grid([*fixed.values(), *trained]))
        return {}

    return Evaluator(every, draw, metrics=False)
