"""Pruning as one call: teacher folder in, untrained student folder out."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bksdm_jax.errors import InputError, one_of
from bksdm_jax.models.unet_json import require_flax_expressible, unet_to_diffusers
from bksdm_jax.pruning.plan import RemovalPlan, plan_removal, removed_blocks
from bksdm_jax.pruning.weights import copy_weights, random_weights
from bksdm_jax.weights.pipeline_folder import (
    load_pipeline,
    load_unet_config,
    pipeline_folder,
    suffix_of,
    write_pipeline,
)
from bksdm_jax.workdir import is_used


def _from_teacher(plan: RemovalPlan, teacher: dict[str, Any], seed: int) -> dict[str, Any]:
    del seed
    return copy_weights(plan, teacher)


def _at_random(plan: RemovalPlan, teacher: dict[str, Any], seed: int) -> dict[str, Any]:
    del teacher
    return random_weights(plan.student, seed)


INITS = {"teacher": _from_teacher, "random": _at_random}
"""name -> (plan, the teacher's parameters, seed) -> the student's parameters."""


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """A student to cut.

    Attributes:
        teacher: pipeline folder, id on the hub, or `shapes_teacher`.
        revision: branch, tag or commit of a teacher from the hub.
        variant: of the teacher's weights, `fp16`, `non_ema`, ...; empty: the plain ones.
        student: a preset, or a comma-separated list of removed blocks.
        student_init: a key of `INITS`.
        seed: of random weights.
        format: `safetensors` or `flax`.
    """

    teacher: str
    student: str
    student_init: str = "teacher"
    seed: int = 0
    format: str = "safetensors"
    revision: str = ""
    variant: str = ""


def plan_student(teacher: str | Path, student: str, student_init: str, file_format: str) -> RemovalPlan:
    """The plan of a student that a pipeline folder can hold, from the teacher's config alone.

    Raises:
        InputError: an unknown name, a list of removed blocks that can't work, or one that Diffusers can't express.
    """
    if student_init not in INITS:
        raise one_of("student_init", student_init, INITS)
    suffix_of(file_format)
    plan = plan_removal(load_unet_config(teacher), removed_blocks(student))
    unet_to_diffusers(plan.student)
    if file_format == "flax":
        require_flax_expressible(plan.student)
    return plan


def initial_weights(plan: RemovalPlan, student_init: str, teacher: dict[str, Any], seed: int) -> dict[str, Any]:
    """The student's first parameters, float32 numpy, nested by Flax names."""
    weights = INITS[student_init](plan, teacher, seed)
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), weights)


def prune(config: PruneConfig, workdir: Path) -> RemovalPlan:
    """Writes the student's pipeline folder as `workdir`.

    Raises:
        InputError: a setting, file or folder can't be used; nothing is written then.
    """
    teacher = pipeline_folder(config.teacher, config.revision, config.variant)
    plan = plan_student(teacher, config.student, config.student_init, config.format)
    if is_used(workdir):
        raise InputError(f"{workdir}: exists already; choose a new folder for the student")
    pipeline = load_pipeline(teacher, config.variant)
    params = initial_weights(plan, config.student_init, pipeline.unet.params, config.seed)
    extra = {"removal_plan.json": plan.to_json()}
    write_pipeline(workdir, pipeline, plan.student, params, config.format, extra)
    return plan
