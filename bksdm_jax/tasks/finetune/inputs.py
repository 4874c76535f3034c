"""A fine-tuning's inputs: the files that its settings name, found and checked against each other."""

import dataclasses
import math
import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from bksdm_jax.base.distributed import any_process, is_first
from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.data.options import SourceOptions
from bksdm_jax.data.pair_examples import PairExamples
from bksdm_jax.data.sources import INFO, data_folder, is_cached, open_examples
from bksdm_jax.models.attend import require_attention
from bksdm_jax.models.norms import require_norms
from bksdm_jax.pipelines.load import Model, find_model
from bksdm_jax.pipelines.lora import Lora, open_loras
from bksdm_jax.pipelines.passthrough import NO_EXTRAS
from bksdm_jax.pipelines.pipeline import Architectures, Pipeline
from bksdm_jax.pipelines.save import require_savable, wanted_extras
from bksdm_jax.pruning.stored_plan import PLAN, read_plan
from bksdm_jax.sampling.config import SampleConfig, require_settings
from bksdm_jax.sampling.run import sample
from bksdm_jax.sampling.text_to_image import require_resolution, require_sampler
from bksdm_jax.tasks.finetune.config import AdapterConfig, FinetuneConfig, PriorConfig, require_finetune
from bksdm_jax.tasks.finetune.trained import Trained, what_is_trained
from bksdm_jax.training.config import require_whole_batches
from bksdm_jax.training.sharding import make_mesh

CLASS_IMAGES = "class_images"
"""The folder of a workdir with the class images that were made."""
_SHOWN = 3
_MUCH = 2**32  # bytes
_WORDS = re.compile(r"\w+")


@dataclasses.dataclass(frozen=True)
class Inputs:
    """A run's inputs, without any weights.

    Attributes:
        model: its configs, and the paths of its weights.
        trained: what is trained of it.
        data: the folder of the images.
        examples: the images.
        prior_data: the folder of the class images; None: there are none, or they are made.
        prior: the class images, if they exist already.
        loras: merged into the model before anything else.
    """

    model: Model
    trained: Trained
    data: epath.Path
    examples: Sequence[Any]
    prior_data: epath.Path | None
    prior: Sequence[Any]
    loras: tuple[Lora, ...]


def open_inputs(config: FinetuneConfig) -> Inputs:
    """Finds a run's inputs and checks all that doesn't need weights; raises `InputError` if one can't be used."""
    require_finetune(config)
    require_attention(config.attention, compute_dtype(config.dtype))
    require_norms(config.norms)
    model = find_model(
        config.source(config.model), NO_EXTRAS if config.adapter.rank else wanted_extras(config.save_config())
    )
    networks = model.architectures
    trained = what_is_trained(config, networks)
    if not config.adapter.rank:
        require_savable(networks, config.save_config())
    loras = open_loras(config, networks, config.allow_non_finite)
    require_resolution(config.resolution, networks)
    if config.sheets.steps:
        require_sampler(config.grid_sampler(networks.schedule), networks)
    require_whole_batches(config, make_mesh(config.fsdp).size)
    data = data_folder(config.data)
    examples = open_examples(data, config.split, config, config.skip_unusable)
    prior_data, prior = None, ()
    if config.prior.weight and config.prior.folder:
        prior_data = data_folder(config.prior.folder)
        caption = "" if (prior_data / INFO).is_file() else config.prior.prompt
        options = SourceOptions(caption=caption, background=config.background, least_side=config.least_side)
        prior = open_examples(prior_data, "train", options, config.skip_unusable)
    elif config.prior.weight:
        _require_class_sampling(config, networks)
    for key, some in (("data", examples), ("prior.folder", prior)):
        if is_cached(some) and config.random_crop:
            raise InputError(
                f"random_crop: {key} has cached latents, of the centre of each image; set random_crop to no"
            )
    if config.prior.weight and is_cached(examples) != is_cached(prior) and not config.cache_latents:
        raise InputError("cache_latents: no, but either data or class images are cached latents; set it to yes")
    plan = plan_beside(model.path)
    if plan.is_file():
        read_plan(plan)  # raises if it is damaged
    return Inputs(model, trained, data, examples, prior_data, prior, loras)


def plan_beside(model: Path) -> Path:
    """Where the removal plan of a model would be, a folder or a single file."""
    return (model if model.is_dir() else model.parent) / PLAN


def _require_class_sampling(config: FinetuneConfig, networks: Architectures) -> None:
    """Raises `InputError` if class images can't be made so; reads no weights."""
    try:
        if config.prior.model:
            networks = find_model(config.prior.model).architectures
    except InputError as error:
        raise InputError(f"prior.model: {error}") from error
    try:
        require_settings(own := _class_sampling(config))
        require_sampler(own, networks)
    except InputError as error:
        raise InputError(f"prior.{error}") from error


def class_images(config: FinetuneConfig, workdir: Path) -> Sequence[Any]:
    """Makes class images in the workdir, as far as they are missing, and opens them."""
    folder = workdir / CLASS_IMAGES
    if any_process(is_first() and not (folder / "metadata.csv").exists()):
        sample(_class_sampling(config), folder)
    return open_examples(epath.Path(folder))


def _class_sampling(config: FinetuneConfig) -> SampleConfig:
    prior = config.prior
    of_model = ("revision", "variant", "tokenizer", "prediction", "lora", "allow_unplaced_lora")
    own: dict[str, Any] = {} if prior.model else {key: getattr(config, key) for key in of_model}
    return SampleConfig(
        model=prior.model or config.model,
        prompt=prior.prompt,
        images_per_prompt=prior.images,
        steps=prior.steps,
        guidance_scale=prior.guidance_scale,
        batch_size=prior.batch_size,
        resolution=config.resolution,
        seed=config.seed,
        dtype=config.dtype,
        allow_non_finite=config.allow_non_finite,
        **own,
    )


def oddities(config: FinetuneConfig, inputs: Inputs, pipeline: Pipeline) -> Iterator[str]:
    """What a run's settings say that is hardly meant, a line each."""
    examples = inputs.examples
    names = [examples[i].name for i in range(len(examples))] if isinstance(examples, PairExamples) else []
    below = sorted({name.partition("/")[0] for name in names if "/" in name})
    if below:
        more = ", ..." if len(below) > _SHOWN else ""
        yield f"{inputs.data}: images in sub-folders are used too ({', '.join(below[:_SHOWN])}{more})"
    if config.batch_size > len(examples):
        yield f"batch_size: {config.batch_size}, but there are {len(examples)} images: an update has some of them twice"
    elif len(examples) == 1:
        yield f"{inputs.data}: one image; the model will learn its background too, 3 to 6 images are usual"
    if config.resolution != inputs.model.architectures.resolution:
        own = inputs.model.architectures.resolution
        yield f"resolution: {config.resolution} pixels, but {config.model} is made for {own}"
    size = _latents_size(config, inputs)
    if size > _MUCH:
        yield (
            f"cache_latents: they take {size / 2**30:.0f} GiB of memory in each process; launch.prepare can store "
            "them, or set it to no"
        )
    yield from _unused(config)
    for word, parts in split_words(config.caption, config.prior.prompt, pipeline):
        yield (
            f"caption: the tokenizer splits {shown(word)} into {len(parts)} tokens ({' '.join(parts)}); a rare word of "
            "one token is easier to learn"
        )


def _latents_size(config: FinetuneConfig, inputs: Inputs) -> int:
    """Bytes of the latents that are kept, if no image is a square."""
    if not config.cache_latents:
        return 0
    images = sum(len(some) for some in (inputs.examples, inputs.prior) if not is_cached(some))
    views = (2 if config.flip else 1) * (config.crops if config.random_crop else 1)
    return images * views * 4 * math.prod(inputs.model.architectures.latent_shape(config.resolution))


def _unused(config: FinetuneConfig) -> Iterator[str]:
    """Settings that differ from their defaults without any effect."""
    defaults, prior, adapter = PriorConfig(), config.prior, config.adapter
    made = [key for key in ("model", "images", "steps") if getattr(prior, key) != getattr(defaults, key)]
    if prior.folder and made:
        yield f"prior.{made[0]}: has no effect, since prior.folder has the class images"
    if adapter.rank and not config.text_encoder and adapter.text_modules != AdapterConfig().text_modules:
        yield "adapter.text_modules: has no effect, since text_encoder is no"
    if not adapter.rank and (adapter.alpha or adapter.modules != AdapterConfig().modules):
        yield "adapter: has no effect, since adapter.rank is 0: all weights are trained"


def split_words(caption: str, of_class: str, pipeline: Pipeline) -> Iterator[tuple[str, list[str]]]:
    """The words of a caption that the class prompt doesn't have and that are several tokens, with these."""
    known = set(_WORDS.findall(of_class.lower()))
    words = [word for word in dict.fromkeys(_WORDS.findall(caption.lower())) if word not in known]
    for tokenizer in pipeline.tokenizers.values():
        for word, ids in zip(words, tokenizer.pieces(words), strict=True):
            if len(ids) > 1:
                yield word, tokenizer.tokens(ids)
