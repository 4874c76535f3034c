"""Settings of `launch.prune`, and of a student's initial weights; nothing here imports JAX."""

import dataclasses

from bksdm_jax.base.errors import whole_number
from bksdm_jax.pipelines.config import LoraOptions, SaveOptions, require_loras, require_save
from bksdm_jax.pipelines.source import ModelOptions, ReadOptions
from bksdm_jax.pruning.removal import removed_blocks
from bksdm_jax.pruning.targets import RANDOM, missing_scores, read_target

INITS = {"teacher": "the parent's weights of the remaining blocks", "random": "random weights"}
"""Initial weights by name, as a model card describes them."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class InitOptions(ReadOptions):
    """The source of a student's initial weights, as settings of a command.

    Attributes:
        student_init: the student's initial weights: `teacher` (the remaining blocks' own), `random`, or a pipeline
            whose U-Net has the student's architecture: folder, single file or hub id.
        init_revision: branch, tag or commit, if that is a hub model; empty: its default branch.
        init_variant: of its weights, such as `fp16` or `non_ema`; empty: the default weights.
        block_scores: for a student such as `taylor:482M`: the workdir of `launch.analyse`, or its `blocks.json`.
    """

    student_init: str = "teacher"
    init_revision: str = ""
    init_variant: str = ""
    block_scores: str = ""


@dataclasses.dataclass(frozen=True)
class PruneConfig(ModelOptions, LoraOptions, InitOptions, SaveOptions):
    """A student to prune.

    Attributes:
        teacher: pipeline folder, single file, hub id, or `shapes_teacher`.
        student: a preset (sd, bk_base, bk_small, bk_tiny, no_mid), a comma-separated list of blocks to remove, or a
            criterion and a size, such as `taylor:482M` (parameters) or `taylor:217G` (multiply-adds);
            `random7:482M`: by chance.
        seed: of random weights.
    """

    teacher: str
    student: str
    seed: int = 0


def require_student(student: str, block_scores: str) -> None:
    """Raises `InputError` if no teacher has such a student; reads no files."""
    target = read_target(student)
    if target is None:
        removed_blocks(student)
    elif target.criterion != RANDOM and not block_scores:
        raise missing_scores(student)


def require_settings(config: PruneConfig) -> None:
    """Raises `InputError`, with the key, for a setting that no teacher can be pruned with; reads no files."""
    require_student(config.student, config.block_scores)
    require_loras(config)
    require_save(config.save_config())
    whole_number("config", "seed", config.seed, 0)
