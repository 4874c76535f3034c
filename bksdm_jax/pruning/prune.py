"""Prunes a teacher to an untrained student."""

import dataclasses
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bksdm_jax.base.errors import InputError, one_of
from bksdm_jax.base.workdir import is_used
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.pipelines.hub import is_hub_id
from bksdm_jax.pipelines.load import find_denoiser, find_model
from bksdm_jax.pipelines.model_card import CardFacts, parent_name
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pipelines.save import SaveConfig, SaveOptions, require_savable, write_pipeline
from bksdm_jax.pipelines.source import ModelOptions, ModelSource, whatever_it_predicts
from bksdm_jax.pruning.presets import preset_of
from bksdm_jax.pruning.removal import RemovalPlan, plan_removal, removed_blocks
from bksdm_jax.pruning.weights import copy_weights, random_weights

INITS: dict[str, Callable[[RemovalPlan, Mapping[str, Any], int], dict[str, Any]]] = {
    "teacher": lambda plan, teacher, seed: copy_weights(plan, teacher),
    "random": lambda plan, teacher, seed: random_weights(plan.student, seed),
}
"""Name -> (plan, the teacher's parameters, seed) -> the student's parameters."""


@dataclasses.dataclass(frozen=True)
class StudentInit:
    """The source of a student's initial weights.

    Attributes:
        name: a key of `INITS`, or a pipeline whose U-Net has the student's architecture.
        revision, variant: of the pipeline, as in `ModelSource`.
    """

    name: str = "teacher"
    revision: str = ""
    variant: str = ""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitOptions:
    """`StudentInit` as settings of a command."""

    student_init: str = "teacher"
    init_revision: str = ""
    init_variant: str = ""

    def student_start(self) -> StudentInit:
        """These settings as a `StudentInit`."""
        return StudentInit(self.student_init, self.init_revision, self.init_variant)


@dataclasses.dataclass(frozen=True)
class PruneConfig(ModelOptions, InitOptions, SaveOptions):
    """A student to prune.

    Attributes:
        teacher: pipeline folder, single file, hub id, or `shapes_teacher`.
        student: a preset, or a comma-separated list of blocks to remove.
        seed: of random weights.
        student_init, init_revision, init_variant: as in `StudentInit`.
        revision, variant, tokenizer, prediction: of the teacher, as in `ModelSource`.
        format, save_dtype, safety_checker: as in `SaveConfig`.
    """

    teacher: str
    student: str
    seed: int = 0


def plan_student(teacher: Architectures, student: str, save: SaveConfig) -> RemovalPlan:
    """The removal plan of a student, checked to be savable.

    Args:
        teacher: its networks.
        student: a preset, or a comma-separated list of blocks to remove.
        save: how the student will be saved.

    Raises:
        InputError: an unknown name, an invalid list of blocks, or a student that the format can't express.
    """
    plan = plan_removal(teacher.denoiser, removed_blocks(student))
    require_savable(teacher.with_denoiser(plan.student), save)
    return plan


@dataclasses.dataclass(frozen=True)
class InitialWeights:
    """The source of a student's initial weights, found and checked against the plan.

    Attributes:
        plan: teacher and student.
        name: as in `StudentInit`.
        source: the pipeline with the weights; None if `name` is a key of `INITS`.
    """

    plan: RemovalPlan
    name: str
    source: ModelSource | None = None

    def read(self, teacher: Mapping[str, Any], seed: int) -> dict[str, Any]:
        """Reads the weights: float32 numpy, nested by Flax names.

        Args:
            teacher: the teacher's parameters.
            seed: of random weights.

        Raises:
            InputError: the pipeline can't be read.
        """
        if self.source:
            weights = find_denoiser(self.source, weights=True).read_denoiser().params
        else:
            weights = INITS[self.name](self.plan, teacher, seed)
        return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), weights)


def find_initial_weights(plan: RemovalPlan, start: StudentInit) -> InitialWeights:
    """Finds a student's initial weights without reading them.

    Raises:
        InputError: an unknown name, an option that doesn't apply to it, or a pipeline whose U-Net doesn't match.
    """
    if start.name in INITS:
        if start.revision or start.variant:
            key = "init_revision" if start.revision else "init_variant"
            raise InputError(f"{key}: applies if student_init is a pipeline, not {start.name}")
        return InitialWeights(plan, start.name)
    if not is_hub_id(start.name) and not Path(start.name).expanduser().exists():
        error = one_of("student_init", start.name, INITS)
        raise InputError(f"{error}; or the folder, file or hub id of a pipeline with such a U-Net")
    # The teacher's prediction type applies.
    source = whatever_it_predicts(ModelSource(start.name, start.revision, start.variant))
    _require_student(plan, start.name, find_denoiser(source).architectures.denoiser)
    return InitialWeights(plan, start.name, source)


def _require_student(plan: RemovalPlan, name: str, found: UNetConfig) -> None:
    """Checks that a U-Net to start from matches the plan's student."""
    for key in vars(plan.student):
        ours, theirs = getattr(plan.student, key), getattr(found, key)
        if key not in ("sample_size", "upcast_attention") and ours != theirs:
            raise InputError(
                f"student_init: the U-Net of {name} doesn't match the student: "
                f"its {key} is {str(theirs)[:300]}, expected {str(ours)[:300]}"
            )


def card_facts(teacher: str, plan: RemovalPlan, student_init: str, training: Mapping[str, object]) -> CardFacts:
    """The facts for a student's model card; `training` may be empty."""
    start = {"teacher": "the parent's weights of the remaining blocks", "random": "random weights"}
    return CardFacts(
        teacher,
        plan.removed,
        start.get(student_init, f"the U-Net of `{parent_name(student_init)}`"),
        training,
        preset_of(plan.removed),
    )


def prune(config: PruneConfig, workdir: Path) -> tuple[RemovalPlan, Path]:
    """Writes the student's pipeline to `workdir`.

    Returns:
        the plan, and the path of the student: the folder, or the single file in it.

    Raises:
        InputError: a setting, file or folder can't be used; nothing has been written.
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
