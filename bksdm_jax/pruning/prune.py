"""Pruning as one call: teacher in, untrained student out."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bksdm_jax.base.errors import InputError, one_of
from bksdm_jax.base.workdir import is_used
from bksdm_jax.pipelines.hub import is_hub_id
from bksdm_jax.pipelines.load import find_pipeline, load_architectures, load_pipeline, load_unet, load_unet_config
from bksdm_jax.pipelines.model_card import CardFacts, parent_name
from bksdm_jax.pipelines.save import SaveConfig, require_savable, with_unet, write_pipeline
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
        revision, variant: of the pipeline, as `find_pipeline` takes them.
    """

    name: str = "teacher"
    revision: str = ""
    variant: str = ""


@dataclasses.dataclass(frozen=True)
class PruneConfig:
    """A student to cut.

    Attributes:
        teacher: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        revision: branch, tag or commit of a teacher from the hub.
        variant: of the teacher's weights, `fp16`, `non_ema`, ...; empty: the plain ones.
        student: a preset, or a comma-separated list of removed blocks.
        student_init, init_revision, init_variant: as `StudentInit` has them.
        seed: of random weights.
        tokenizer, prediction: what a single-file teacher doesn't say: a folder or id on the hub; `epsilon` or
            `v_prediction`.
        format, save_dtype, safety_checker: as `SaveConfig` has them.
    """

    teacher: str
    student: str
    student_init: str = "teacher"
    seed: int = 0
    format: str = "safetensors"
    revision: str = ""
    variant: str = ""
    tokenizer: str = ""
    prediction: str = ""
    save_dtype: str = ""
    safety_checker: bool = True
    init_revision: str = ""
    init_variant: str = ""


def plan_student(
    teacher: str | Path, student: str, start: StudentInit, save: SaveConfig, prediction: str = ""
) -> RemovalPlan:
    """The plan of a student that can be written, from configs alone.

    Args:
        teacher: as `find_pipeline` takes it.
        student: a preset, or a comma-separated list of removed blocks.
        start: of the student's weights.
        save: how it is to be written.
        prediction: of a single-file teacher.

    Raises:
        InputError: an unknown name, a list of removed blocks that can't work, a student that the format can't hold, or
            first weights of another U-Net.
    """
    networks = load_architectures(teacher, prediction)
    plan = plan_removal(networks.unet, removed_blocks(student))
    require_savable(dataclasses.replace(networks, unet=plan.student), save)
    if start.name not in INITS:
        _require_student(plan, start)
    elif start.revision or start.variant:
        key = "init_revision" if start.revision else "init_variant"
        raise InputError(f"{key}: for a student_init that is a pipeline, not {start.name}")
    return plan


def _require_student(plan: RemovalPlan, start: StudentInit) -> None:
    """Holds the U-Net of a pipeline that training is to start from to the one that the plan leaves."""
    if not is_hub_id(start.name) and not Path(start.name).expanduser().exists():
        error = one_of("student_init", start.name, INITS)
        raise InputError(f"{error}; or the folder, file or id on the hub of a pipeline with such a U-Net")
    # Whatever it predicts: the teacher's is what counts.
    found = load_unet_config(start.name, "epsilon", start.revision)
    for key in vars(plan.student):
        ours, theirs = getattr(plan.student, key), getattr(found, key)
        if key not in ("sample_size", "upcast_attention") and ours != theirs:
            raise InputError(
                f"student_init: the U-Net of {start.name} is another one than the teacher without the removed "
                f"blocks: its {key} is {str(theirs)[:300]}, not {str(ours)[:300]}"
            )


def initial_weights(plan: RemovalPlan, start: StudentInit, teacher: dict[str, Any], seed: int) -> dict[str, Any]:
    """The student's first parameters, float32 numpy, nested by Flax names.

    Args:
        plan: teacher and student.
        start: where they come from.
        teacher: the teacher's parameters.
        seed: of random weights.

    Raises:
        InputError: the pipeline can't be read.
    """
    known = INITS.get(start.name)
    weights = known(plan, teacher, seed) if known else load_unet(start.name, start.revision, start.variant).params
    return jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), weights)


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
    save = SaveConfig(config.format, config.save_dtype, config.safety_checker)
    teacher = find_pipeline(config.teacher, config.revision, config.variant, save.extras())
    start = StudentInit(config.student_init, config.init_revision, config.init_variant)
    plan = plan_student(teacher, config.student, start, save, config.prediction)
    if is_used(workdir):
        raise InputError(f"{workdir}: exists already; choose a new folder for the student")
    pipeline = load_pipeline(teacher, config.variant, config.tokenizer, config.prediction)
    params = initial_weights(plan, start, pipeline.unet.params, config.seed)
    facts = card_facts(config.teacher, plan, config.student_init, {})
    extra = {"removal_plan.json": plan.to_json()}
    return plan, write_pipeline(workdir, with_unet(pipeline, plan.student, params), save, facts, extra)
