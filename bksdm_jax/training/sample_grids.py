"""Sample grids: images of several networks from the same prompts and starting noise."""

import dataclasses
from collections.abc import Callable, Sequence
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


@dataclasses.dataclass(frozen=True)
class Row:
    """A row of a grid, or two.

    Attributes:
        name: of what makes its images, in messages.
        networks: that make its images.
        params: (trained parameters, frozen) -> parameters by network.
        trained: whether they depend on the trained parameters: the row is drawn with their moving average and with
            themselves. Else it is made once.
    """

    name: str
    networks: Architectures
    params: Callable[[Any, Frozen], dict[str, Any]]
    trained: bool = True


def sample_grids(
    folder: Path,
    caption_inputs: EncodeCaptions,
    prompts: Sequence[str],
    sampler: SamplerConfig,
    rows: Sequence[Row],
    dtype: jnp.dtype,
    mesh: Mesh,
    every: int,
) -> Evaluator:
    """Draws `step_*.png`: the rows beneath each other; each prompt makes a column.

    Nothing is compiled before the first grid. Raises `InputError` for unusable settings.
    """
    numbered = list(enumerate(prompts))
    generates = [make_generate(row.networks, sampler, dtype) for row in rows]
    programs: list[tuple[Architectures, Any, Generate]] = []
    fixed: dict[int, np.ndarray] = {}

    def program(number: int, params: Any) -> Generate:
        """Rows of the same networks, shapes, dtypes and layouts share it."""
        networks = rows[number].networks
        shapes = jax.tree.map(lambda leaf: (leaf.shape, leaf.dtype, leaf.format.layout), params)
        for own, of, found in programs:
            if own == networks and of == shapes:
                return found
        jitted = jax.jit(generates[number], out_shardings=replicated(mesh))
        found = compiled_together(jitted, f"sample grids of the {rows[number].name}")
        programs.append((networks, shapes, found))
        return found

    def images(number: int, trained: Any, frozen: Frozen) -> np.ndarray:
        params = rows[number].params(trained, frozen)
        generate = program(number, params)
        made = generate_images(generate, params, caption_inputs, sampler, numbered, len(numbered))
        return np.stack([image for _, image in made])  # [N, H, W, 3]

    def draw(step: int, state: TrainState, frozen: Frozen) -> dict[str, float]:
        drawn: list[np.ndarray] = []
        states = [state.params] if state.average is state.params else [state.average, state.params]
        for number, row in enumerate(rows):
            if row.trained:
                drawn += [images(number, trained, frozen) for trained in states]
                continue
            if number not in fixed:
                fixed[number] = images(number, None, frozen)
            drawn.append(fixed[number])
        if is_first():
            folder.mkdir(parents=True, exist_ok=True)
            save_png(folder / f"step_{step:06d}.png", grid(drawn))
        return {}

    return Evaluator(every, draw, metrics=False)
