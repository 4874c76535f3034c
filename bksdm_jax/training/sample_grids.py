"""Sample sheets: what teacher and student make of the same prompts and the same starting noise."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding

from bksdm_jax.base.distributed import is_first, together
from bksdm_jax.base.images import grid, save_png
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pipelines.tokenizer import Tokenizer
from bksdm_jax.sampling.text_to_image import Generate, SamplerConfig, generate_images, make_generate


@dataclasses.dataclass(frozen=True)
class SheetConfig:
    """When sheets are drawn, and of what.

    Attributes:
        every: optimiser updates between sheets; 0: one at the end.
        prompts: one column each; none: the first captions of the data.
        steps, guidance_scale: of the sampler; 0 steps: no sheets.
    """

    every: int = 1000
    prompts: tuple[str, ...] = ()
    steps: int = 25
    guidance_scale: float = 7.5


class Sheets:
    """Draws `samples/step_*.png`: the teacher above, below it the student's moving average, last its weights."""

    def __init__(
        self,
        folder: Path,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        sampler: SamplerConfig,
        teacher: Architectures,
        student: Architectures,
        dtype: jnp.dtype,
        whole: NamedSharding,
    ) -> None:
        """Nothing is compiled before the first sheet; settings that can't work raise `InputError` here.

        `whole` is the sharding of images that every process is to have whole.
        """
        self._folder, self._tokenizer, self._sampler = folder, tokenizer, sampler
        self._prompts = list(enumerate(prompts))
        self._teacher, self._student = (
            together(jax.jit(make_generate(networks, sampler, dtype), out_shardings=whole))
            for networks in (teacher, student)
        )
        self._teacher_row: np.ndarray | None = None  # stays the same throughout a run

    def draw(self, step: int, students: Sequence[Any], frozen: Mapping[str, Any]) -> None:
        """Writes the sheet of `step` from parameters of the student, a row each, and those of the frozen networks.

        Every process has to call it; the first one writes.
        """
        others = {name: frozen[name] for name in ("vae", "text_encoder")}
        if self._teacher_row is None:
            self._teacher_row = self._row(self._teacher, {"unet": frozen["teacher"], **others})
        rows = [self._row(self._student, {"unet": student, **others}) for student in students]
        if is_first():
            self._folder.mkdir(parents=True, exist_ok=True)
            save_png(self._folder / f"step_{step:06d}.png", grid([self._teacher_row, *rows]))

    def _row(self, generate: Generate, params: dict[str, Any]) -> np.ndarray:
        images = generate_images(generate, params, self._tokenizer, self._sampler, self._prompts, len(self._prompts))
        return np.stack([image for _, image in images])  # [N, H, W, 3]
