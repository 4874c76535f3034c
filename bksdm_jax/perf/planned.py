"""A training run as its plan sees it, whatever is trained."""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Self

import numpy as np

from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.pipelines.generations import GENERATIONS
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pipelines.stable_diffusion import stable_diffusion
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.tasks.finetune.config import FinetuneConfig
from bksdm_jax.training.train_step import Objective

Settings = DistillConfig | FinetuneConfig
"""Of a run that can be planned."""


@dataclasses.dataclass(frozen=True)
class PlannedRun:
    """A run to plan; nothing of it is read but configs.

    Attributes:
        config: its settings.
        networks: the pipeline's.
        objective: settings of another size -> the run's objective with them.
        name: of the model, in words.
        cached: whether batches are of latents.
        trained: in words, the part of a device's memory that the trained parameters take.
        frozen: part of a device's memory, in words -> names of the frozen networks in it.
        passes: the U-Nets' necessary passes, in words.
        forwards: U-Nets, and to how many forward passes these are equal.
        notes: further lines on what is trained.
        unit: what `batch_size` counts, in the singular.
        memory: the unit of its parts: GiB or MiB.
        period: the unit of the whole run's time: days or minutes.
    """

    config: Settings
    networks: Architectures
    objective: Callable[[Any], Objective]
    name: str
    cached: bool
    trained: str
    frozen: Mapping[str, tuple[str, ...]]
    passes: str
    forwards: tuple[tuple[UNetConfig, int], ...]
    notes: tuple[str, ...] = ()
    unit: str = "image"
    memory: str = "GiB"
    period: str = "days"

    def resized(self, **settings: Any) -> Self:
        """The same run with other values of settings that change neither what is trained nor the passes."""
        return dataclasses.replace(self, config=dataclasses.replace(self.config, **settings))


def networks_of(config: Settings, model: str, generation: str) -> Architectures:
    """Those of a model or, if it is empty, of a generation; raises `InputError` if the model can't be used."""
    if model:
        return find_model(config.source(model), networks=()).architectures
    return stable_diffusion(GENERATIONS[generation][0])


def name_of(model: str, generation: str, student: str) -> str:
    """The same in words; `student` is cut from it, unless it is empty."""
    whole = model or f"Stable Diffusion {generation}"
    return f"{student} of {whole}" if student else whole


def empty_caption(networks: Architectures) -> dict[str, np.ndarray]:
    """Inputs of the shapes of the empty caption's, which depend on a tokenizer."""
    shapes = networks.kind.caption_shapes(networks.configs)
    return {name: np.zeros(one.shape, one.dtype) for name, one in shapes.items()}
