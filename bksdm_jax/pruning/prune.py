"""Prunes a teacher to an untrained student."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bksdm_jax.base.errors import InputError, one_of
from bksdm_jax.base.workdir import is_used
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.pipelines.config import SaveConfig
from bksdm_jax.pipelines.hub import is_hub_id
from bksdm_jax.pipelines.load import find_denoiser, find_model
from bksdm_jax.pipelines.lora import open_loras, with_loras
from bksdm_jax.pipelines.model_card import CardFacts, parent_name
from bksdm_jax.pipelines.pipeline import Architectures, Pipeline
from bksdm_jax.pipelines.save import require_savable, wanted_extras, write_pipeline
from bksdm_jax.pipelines.source import ModelSource
from bksdm_jax.pruning.block_scores import removed_from
from bksdm_jax.pruning.config import INITS, InitOptions, PruneConfig, require_settings
from bksdm_jax.pruning.presets import preset_of
from bksdm_jax.pruning.removal import RemovalPlan, plan_removal
from bksdm_jax.pruning.weights import copy_weights, random_weights


def plan_student(teacher: Architectures, student: str, save: SaveConfig, block_scores: str = "") -> RemovalPlan:
    """The removal plan of a student, checked to be savable.

    Args:
        teacher: its networks.
        student: a preset, a comma-separated list of blocks to remove, or a criterion and a size.
        save: how the student will be saved.
        block_scores: for a criterion: the file of the blocks' scores, or its folder.

    Raises:
        InputError: an unknown name, an invalid list of blocks, or a student that the format can't express.
    """
    plan = plan_removal(teacher.denoiser, removed_from(teacher.denoiser, student, block_scores))
    require_savable(teacher.with_denoiser(plan.student), save)
    return plan


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """The source of a student's initial weights, found and checked against the plan.

    Attributes:
        plan: teacher and student.
        source: the pipeline with the weights, or a key of `INITS`.
    """

    plan: RemovalPlan
    source: ModelSource | str

    def read(self, teacher: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Reads the weights: float32 numpy, nested by Flax names.

        Args:
            teacher: the teacher's parameters.
            seed: of random weights.

        Raises:
            InputError: the pipeline can't be read.
        """
        if self.source == "teacher":
            weights = copy_weights(self.plan, teacher)
        elif self.source == "random":
            weights = random_weights(self.plan.student, seed)
        else:
            weights = find_denoiser(self.source, weights=True).read_denoiser().params
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), weights)


def find_initial_weights(plan: RemovalPlan, options: InitOptions) -> InitialWeights:
    """Finds a student's initial weights without reading them.

    Raises:
        InputError: an unknown name, an option that doesn't apply to it, or a pipeline whose U-Net doesn't match.
    """
    name = options.student_init
    if name in INITS:
        for key in ("init_revision", "init_variant"):
            if getattr(options, key):
                raise InputError(f"{key}: applies if student_init is a pipeline, not {name}")
        return InitialWeights(plan, name)
    if not is_hub_id(name) and not Path(name).expanduser().exists():
        error = one_of("student_init", name, INITS)
        raise InputError(f"{error}; or the folder, file or hub id of a pipeline with such a U-Net")
    # The teacher's prediction type applies.
    source = ModelSource(
        name,
        options.init_revision,
        options.init_variant,
        any_prediction=True,
        allow_non_finite=options.allow_non_finite,
    )
    _require_student(plan, name, find_denoiser(source).architectures.denoiser)
    return InitialWeights(plan, source)


def pruned(teacher: Pipeline, start: InitialWeights, seed: int) -> Pipeline:
    """The teacher's pipeline with the student's U-Net; raises `InputError` if the weights can't be read.

    `seed` is that of random weights.
    """
    return teacher.with_denoiser(start.plan.student, start.read(teacher.denoiser.params, seed))


def _require_student(plan: RemovalPlan, name: str, found: UNetConfig) -> None:
    """Checks that a U-Net to start from matches the plan's student."""
    ours, theirs = plan.student.in_words(), found.in_words()
    for key in ours | theirs:
        own, other = ours.get(key, "none"), theirs.get(key, "none")
        if key not in ("sample_size", "upcast_attention") and own != other:
            raise InputError(
                f"student_init: the U-Net of {name} doesn't match the student: its {key}: {other}; expected {own}"
            )


def card_facts(teacher: str, plan: RemovalPlan, student_init: str, training: Mapping[str, object]) -> CardFacts:
    """The facts for a student's model card; `training` may be empty."""
    start = INITS.get(student_init, f"the U-Net of `{parent_name(student_init)}`")
    return CardFacts(teacher, plan.removed, start, training, preset_of(plan.removed))


def prune(config: PruneConfig, workdir: Path) -> tuple[RemovalPlan, Path]:
    """Writes the student's pipeline to `workdir`.

    Returns:
        the plan, and the path of the student: the folder, or the single file in it.

    Raises:
        InputError: a setting, file or folder can't be used; nothing has been written.
    """
    require_settings(config)
    save = config.save_config()
    teacher = find_model(config.source(config.teacher), wanted_extras(save))
    plan = plan_student(teacher.architectures, config.student, save, config.block_scores)
    start = find_initial_weights(plan, config)
    loras = open_loras(config, teacher.architectures, config.allow_non_finite)
    if is_used(workdir):
        raise InputError(f"{workdir}: exists already; choose a new folder for the student")
    student = pruned(with_loras(teacher.read(), loras), start, config.seed)
    facts = card_facts(config.teacher, plan, config.student_init, {})
    extra = {"removal_plan.json": plan.to_json()}
    return plan, write_pipeline(workdir, student, save, facts, extra, replace=False)
