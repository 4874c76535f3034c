"""A run's inputs: the files that its settings name, found and checked against each other."""

import dataclasses
from collections.abc import Iterator, Sequence

from etils import epath

from bksdm_jax.base.errors import InputError, known_name
from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.data.latents import CachedExample
from bksdm_jax.data.pair_examples import PairExamples
from bksdm_jax.data.sources import Example, First, data_folder, is_cached, open_examples, splits_of
from bksdm_jax.data.tables import read_prompts
from bksdm_jax.metrics.config import FEWEST
from bksdm_jax.models.attend import require_attention
from bksdm_jax.models.norms import require_norms
from bksdm_jax.pipelines.load import Model, find_model
from bksdm_jax.pipelines.lora import Lora, open_loras
from bksdm_jax.pipelines.save import wanted_extras
from bksdm_jax.pruning.prune import InitialWeights, find_initial_weights, plan_student
from bksdm_jax.pruning.removal import RemovalPlan
from bksdm_jax.sampling.text_to_image import require_resolution, require_sampler
from bksdm_jax.tasks.distill.config import DistillConfig, require_generation, require_settings
from bksdm_jax.tasks.distill.features import weighted_pairs
from bksdm_jax.training.config import require_whole_batches
from bksdm_jax.training.sharding import make_mesh

_HELD_OUT = ("validation", "heldout")  # usual names of the split; the first that exists is used


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A run's inputs, without any weights.

    Attributes:
        teacher: its configs, and the paths of its weights.
        plan: teacher and student.
        start: where the student's initial weights come from.
        data: the data's folder.
        found: all examples of the training split.
        examples: the training examples.
        held_out: the validation examples; may be empty.
        cached: whether the examples are cached latents.
        prompts: of the images to score; empty: none are.
        loras: merged into the teacher before anything else.
    """

    teacher: Model
    plan: RemovalPlan
    start: InitialWeights
    data: epath.Path
    found: Sequence[Example | CachedExample]
    examples: Sequence[Example | CachedExample]
    held_out: Sequence[Example | CachedExample]
    cached: bool
    prompts: tuple[str, ...] = ()
    loras: tuple[Lora, ...] = ()


def open_inputs(config: DistillConfig) -> Inputs:
    """Finds a run's inputs and checks all that doesn't need weights; raises `InputError` if one can't be used."""
    require_settings(config)
    require_attention(config.attention, compute_dtype(config.dtype))
    require_norms(config.norms)
    save = config.save_config()
    teacher = find_model(config.source(config.teacher), wanted_extras(save))
    networks = teacher.architectures
    plan = plan_student(networks, config.student, save, config.block_scores)
    start = find_initial_weights(plan, config)
    loras = open_loras(config, networks, config.allow_non_finite)
    require_generation(config, networks)
    weighted_pairs(plan, config.loss.feature_source, config.loss.feature_scales)  # raises for unknown names
    require_resolution(config.resolution, networks)
    if config.sheets.steps:
        require_sampler(config.grid_sampler(networks.schedule), networks)
    if config.evaluators:
        require_sampler(config.scoring_sampler(networks.schedule), networks)
    require_whole_batches(config, make_mesh(config.fsdp).size)
    data = data_folder(config.data)
    examples = open_examples(data, config.split, config, config.skip_unusable)
    held_out = _held_out(config, data, examples)
    if config.examples > len(examples):
        raise InputError(f"examples: {config.examples}, but {data} has {len(examples)}")
    first = First(examples, config.examples) if config.examples else examples
    prompts = _prompts(config, held_out) if config.evaluators else ()
    return Inputs(teacher, plan, start, data, examples, first, held_out, is_cached(examples), prompts, loras)


def oddities(config: DistillConfig, inputs: Inputs) -> Iterator[str]:
    """What a run's settings say that is hardly meant, a line each."""
    count, held_out = len(inputs.examples), len(inputs.held_out)
    if config.batch_size > count:
        yield f"batch_size: {config.batch_size}, but there are {count} examples: an update has some of them twice"
    if config.validation.images and not held_out:
        yield f"validation: none, since {inputs.data} has no split {' or '.join(_HELD_OUT)}"
    elif config.validation.images > held_out:
        yield f"validation.images: {config.validation.images}, but {held_out} are held out: all of them are used"
    if config.optimizer.warmup_steps >= config.steps:
        rate, last = config.optimizer.learning_rate, config.optimizer.warmup_steps
        yield f"optimizer.warmup_steps: {last}, but steps is {config.steps}: the learning rate never reaches {rate:g}"


def _prompts(config: DistillConfig, held_out: Sequence[Example | CachedExample]) -> tuple[str, ...]:
    """The prompts of the images to score."""
    most = config.scoring.images
    if config.scoring.prompts:
        found = tuple(prompt.text for prompt in read_prompts(config.scoring.prompts)[:most])
    else:
        found = tuple(held_out[index].texts[0] for index in range(min(most, len(held_out))))
    if len(found) < FEWEST:
        source = config.scoring.prompts or "held-out images"
        raise InputError(
            f"scoring.prompts: {len(found)} from {source}, but evaluators need at least {FEWEST}; "
            "give a .txt or .csv file of prompts"
        )
    return found


def _held_out(
    config: DistillConfig, data: epath.Path, examples: Sequence[Example | CachedExample]
) -> Sequence[Example | CachedExample]:
    """The validation split; empty if there is none or no validation."""
    usual = (name for name in _HELD_OUT if name != config.split and name in splits_of(examples))
    split = config.validation.split or next(usual, "")
    if not config.validation.images or not split:
        return ()
    if split == config.split:
        raise InputError(
            f"validation.split: {split!r} is the training split; name another one, or set validation.images to 0"
        )
    if not splits_of(examples):
        raise InputError(f"validation.split: {split!r}, but {data} has no splits")
    known_name("config", "validation.split", split, splits_of(examples))
    return examples.of_split(split) if isinstance(examples, PairExamples) else open_examples(data, split)
