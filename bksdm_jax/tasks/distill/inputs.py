"""What a run's settings name, found and held to each other."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from etils import epath
from jax.sharding import Mesh

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.cached import CachedExample
from bksdm_jax.data.sources import Example, First, data_folder, has_split, is_cached, is_set, open_examples
from bksdm_jax.pipelines.load import find_pipeline, load_architectures
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pipelines.save import SaveConfig
from bksdm_jax.pruning.prune import StudentInit, plan_student
from bksdm_jax.pruning.removal import RemovalPlan
from bksdm_jax.sampling.text_to_image import SamplerConfig, require_resolution, require_sampler
from bksdm_jax.tasks.distill.config import TrainConfig, require_generation, require_settings, require_whole_batches
from bksdm_jax.tasks.distill.features import weighted_pairs
from bksdm_jax.training.sharding import make_mesh

_HELD_OUT = ("validation", "heldout")  # usual names of the split, the first of them that is there


@dataclasses.dataclass(frozen=True)
class Run:
    """A run that can begin; no weights are read yet.

    Attributes:
        teacher: where it is.
        plan: teacher and student.
        networks: the teacher's architectures.
        mesh: of the devices.
        data: the folder of
        examples: what is trained on, and
        held_out: what isn't, to validate on; may be empty.
        cached: whether they are latents.
    """

    teacher: Path
    plan: RemovalPlan
    networks: Architectures
    mesh: Mesh
    data: epath.Path
    examples: Sequence[Example | CachedExample]
    held_out: Sequence[Example | CachedExample]
    cached: bool


def open_run(config: TrainConfig) -> Run:
    """Finds what a run needs, and checks what can be known of it without reading weights.

    Raises:
        InputError: a setting, file or folder can't be used.
    """
    require_settings(config)
    save = save_config(config)
    teacher = find_pipeline(config.teacher, config.revision, config.variant, save.extras())
    plan = plan_student(teacher, config.student, student_init(config), save, config.prediction)
    networks = load_architectures(teacher, config.prediction)
    require_generation(config, networks)
    weighted_pairs(plan, config.loss.feature_source, config.loss.feature_scales)  # raises, where a name is unknown
    require_resolution(config.resolution, networks)
    if config.sheets.steps:
        require_sampler(sheet_sampler(config), networks)
    mesh = make_mesh(config.fsdp)
    require_whole_batches(config, mesh.size)
    data = data_folder(config.data)
    examples = open_examples(data, config.split)
    held_out = _held_out(config, data, examples)
    if config.examples > len(examples):
        raise InputError(f"examples: {config.examples}, but {data} has {len(examples)}")
    first = First(examples, config.examples) if config.examples else examples
    return Run(teacher, plan, networks, mesh, data, first, held_out, is_cached(examples))


def _held_out(
    config: TrainConfig, data: epath.Path, examples: Sequence[Example | CachedExample]
) -> Sequence[Example | CachedExample]:
    """The split that losses are validated on; empty where there is none."""
    usual = (name for name in _HELD_OUT if name != config.split and has_split(examples, name))
    split = config.validation.split or next(usual, "")
    if not config.validation.images or not split:
        return ()
    if split == config.split:
        raise InputError(f"validation.split: {split!r} is what is trained on; name another split, or set images to 0")
    if not is_set(examples):
        raise InputError(f"validation.split: {split!r}, but {data} is an image folder, which has no splits")
    return open_examples(data, split)


def save_config(config: TrainConfig) -> SaveConfig:
    """How the student is written."""
    return SaveConfig(config.format, config.save_dtype, config.safety_checker)


def student_init(config: TrainConfig) -> StudentInit:
    """Where the student's first weights are from."""
    return StudentInit(config.student_init, config.init_revision, config.init_variant)


def sheet_sampler(config: TrainConfig) -> SamplerConfig:
    """How sheets are drawn."""
    sheets = config.sheets
    return SamplerConfig(
        sheets.steps, sheets.guidance_scale, config.resolution, seed=config.seed, attention=config.attention
    )
