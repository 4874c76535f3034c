"""Pruning as one call: teacher in, untrained student out."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bksdm_jax.base.errors import InputError, one_of
from bksdm_jax.base.workdir import is_used
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.pipelines.hub import is_hub_id
from bksdm_jax.pipelines.load import Model, find_model
from bksdm_jax.pipelines.model_card import CardFacts, parent_name
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pipelines.save import SaveConfig, SaveOptions, require_savable, write_pipeline
from bksdm_jax.pipelines.source import ModelOptions, ModelSource, whatever_it_predicts
from bksdm_jax.pruning.presets import preset_of
from bksdm_jax.pruning.removal import RemovalPlan, plan_removal, removed_blocks
from bksdm_jax.pruning.weights import copy_weights, random_weights


def _from_teacher(plan: RemovalPlan, teacher: dict[str, Any], seed: int) -> dict[str, Any]:
    del seed
    return copy_weights(plan, teacher)


def _at_random(plan: RemovalPlan, teacher: dict[str, Any], seed: int) -> dict[str, Any]:
    del teacher
    return random_weights(plan.student, seed)


INITS = {"teacher": _from_teacher, "random": _at_random}
"""name -> (plan, the teacher's parameters, seed) -> the student's parameters."""


@dataclasses.dataclass(frozen=True)
class StudentInit:
    """Where a student's first weights come from.

    Attributes:
        name: a key of `INITS`, or a pipeline whose U-Net is that student.
        revision, variant: of the pipeline, as `ModelSource` has them.
    """

    name: str = "teacher"
    revision: str = ""
    variant: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitOptions:
    """The settings of every command that starts a student, as `StudentInit` has them."""

    student_init: str = "teacher"
    init_revision: str = ""
    init_variant: str = ""

    def student_start(self) -> StudentInit:
        """Where the student's first weights come from."""
        return StudentInit(self.student_init, self.init_revision, self.init_variant)


@dataclasses.dataclass(frozen=True)
class PruneConfig(ModelOptions, InitOptions, SaveOptions):
    """A student to cut.

    Attributes:
        teacher: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        student: a preset, or a comma-separated list of removed blocks.
        seed: of random weights.
        student_init, init_revision, init_variant: as `StudentInit` has them.
        revision, variant, tokenizer, prediction: of the teacher, as `ModelSource` has them.
        format, save_dtype, safety_checker: as `SaveConfig` has them.
    """

    teacher: str
    student: str
    seed: int = 0


def plan_student(teacher: Architectures, student: str, save: SaveConfig) -> RemovalPlan:
    """The plan of a student that can be written.

    Args:
        teacher: its networks.
        student: a preset, or a comma-separated list of removed blocks.
        save: how it is to be written.

    Raises:
        InputError: an unknown name, a list of removed blocks that can't work, or a student that the format can't hold.
    """
    plan = plan_removal(teacher.denoiser, removed_blocks(student))
    require_savable(teacher.with_denoiser(plan.student), save)
    return plan


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """Where a student's first weights come from, found and held to the plan.

    Attributes:
        plan: teacher and student.
        name: a key of `INITS`, or the name of
        model: the pipeline that has them.
    """

    plan: RemovalPlan
    name: str
    model: Model | None = None

    def read(self, teacher: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """The weights, float32 numpy, nested by Flax names.

        Args:
            teacher: the teacher's parameters.
            seed: of random weights.

        Raises:
            InputError: the pipeline can't be read.
        """
        weights = self.model.read_denoiser().params if self.model else INITS[self.name](self.plan, teacher, seed)
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), weights)


def find_initial_weights(plan: RemovalPlan, start: StudentInit) -> InitialWeights:
    """Finds a student's first weights, and reads none yet.

    Raises:
        InputError: an unknown name, an option that isn't for it, or a pipeline with another U-Net than the student's.
    """
    if start.name in INITS:
        if start.revision or start.variant:
            key = "init_revision" if start.revision else "init_variant"
            raise InputError(f"{key}: for a student_init that is a pipeline, not {start.name}")
        return InitialWeights(plan, start.name)
    if not is_hub_id(start.name) and not Path(start.name).expanduser().exists():
        error = one_of("student_init", start.name, INITS)
        raise InputError(f"{error}; or the folder, file or id on the hub of a pipeline with such a U-Net")
    # What the teacher predicts counts.
    source = whatever_it_predicts(ModelSource(start.name, start.revision, start.variant))
    model = find_model(source, networks=("unet",))
    _require_student(plan, start.name, model.architectures.denoiser)
    return InitialWeights(plan, start.name, model)


def _require_student(plan: RemovalPlan, name: str, found: UNetConfig) -> None:
    """Holds the U-Net that training is to start from to the student that the plan leaves."""
    for key in vars(plan.student):
        ours, theirs = getattr(plan.student, key), getattr(found, key)
        if key not in ("sample_size", "upcast_attention") and ours != theirs:
            raise InputError(
                f"student_init: the U-Net of {name} doesn't match the student: "
                f"its {key} is {str(theirs)[:300]}, expected {str(ours)[:300]}"
            )


def card_facts(teacher: str, plan: RemovalPlan, student_init: str, training: Mapping[str, object]) -> CardFacts:
    """What a student's model card says beyond the networks; `training` may be empty."""
    start = {"teacher": "the parent's weights for the blocks that stay", "random": "random weights"}
    return CardFacts(
        teacher,
        plan.removed,
        start.get(student_init, f"the U-Net of `{parent_name(student_init)}`"),
        training,
        preset_of(plan.removed),
    )


def prune(config: PruneConfig, workdir: Path) -> tuple[RemovalPlan, Path]:
    """Writes the student's pipeline into `workdir`.

    Returns:
        the plan, and what the student is loaded from: the folder, or the single file in it.

    Raises:
        InputError: a setting, file or folder can't be used; nothing is written then.
    """
    save = config.save_config()
    teacher = find_model(config.source(config.teacher), save.extras())
    plan = plan_student(teacher.architectures, config.student, save)
    start = find_initial_weights(plan, config.student_start())
    if is_used(workdir):
        raise InputError(f"{workdir}: exists already; choose a new folder for the student")
    pipeline = teacher.read()
    params = start.read(pipeline.denoiser.params, config.seed)
    facts = card_facts(config.teacher, plan, config.student_init, {})
    extra = {"removal_plan.json": plan.to_json()}
    return plan, write_pipeline(workdir, pipeline.with_denoiser(plan.student, params), save, facts, extra)
