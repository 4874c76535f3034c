"""Sample sheets: what teacher and student make of the same prompts and the same starting noise."""

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.images import grid, save_png
from bksdm_jax.pipelines.text_to_image import Architectures, SamplerConfig, generate_images, make_generate
from bksdm_jax.weights.tokenizer import Tokenizer


@dataclasses.dataclass(frozen=True)
class SheetConfig:
    """Attributes:
    every: optimiser updates between sheets; 0: one at the end.
    prompts: one column each; none: the first captions of the data.
    steps, guidance_scale: of the sampler.
    """

    every: int = 1000
    prompts: tuple[str, ...] = ()
    steps: int = 25
    guidance_scale: float = 7.5


@dataclasses.dataclass(frozen=True)
class Sheets:
    """Draws `samples/step_*.png`: the teacher above, the student (its moving average) below."""

    folder: Path
    tokenizer: Tokenizer
    prompts: tuple[str, ...]
    sampler: SamplerConfig
    student: Callable[..., jax.Array]
    teacher_row: np.ndarray  # uint8 [N, H, W, 3]

    def draw(self, step: int, student: Any, others: dict[str, Any]) -> None:
        """Writes the sheet of `step`; `others` holds the parameters of `vae` and `text_encoder`."""
        row = _row(self.student, {"unet": student, **others}, self.tokenizer, self.sampler, self.prompts)
        self.folder.mkdir(parents=True, exist_ok=True)
        save_png(self.folder / f"step_{step:06d}.png", grid([self.teacher_row, row]))


def make_sheets(
    folder: Path,
    tokenizer: Tokenizer,
    prompts: tuple[str, ...],
    sampler: SamplerConfig,
    teacher: Architectures,
    student: Architectures,
    teacher_params: dict[str, Any],
    dtype: jnp.dtype,
) -> Sheets:
    """Compiles both samplers and makes the teacher's row, which stays the same throughout a run."""
    programs = [jax.jit(make_generate(networks, sampler, dtype)) for networks in (teacher, student)]
    teacher_row = _row(programs[0], teacher_params, tokenizer, sampler, prompts)
    return Sheets(folder, tokenizer, prompts, sampler, programs[1], teacher_row)


def _row(
    generate: Any, params: dict[str, Any], tokenizer: Tokenizer, sampler: SamplerConfig, prompts: tuple[str, ...]
) -> np.ndarray:
    numbered = list(enumerate(prompts))
    images = generate_images(generate, params, tokenizer, sampler, numbered, len(prompts))
    return np.stack([image for _, image in images])
