"""A fine-tuning's inputs: the files that its settings name, found and checked against each other."""

import dataclasses
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from etils import epath

from bksdm_jax.base.distributed import any_process
from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.data.pair_examples import PairExamples
from bksdm_jax.data.sources import data_folder, is_cached, open_examples
from bksdm_jax.models.attention import require_attention
from bksdm_jax.pipelines.load import Model, find_model
from bksdm_jax.pipelines.lora import Lora, open_loras
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pipelines.save import require_savable, wanted_extras
from bksdm_jax.sampling.config import SampleConfig
from bksdm_jax.sampling.run import sample
from bksdm_jax.sampling.text_to_image import require_resolution, require_sampler
from bksdm_jax.tasks.finetune.config import FinetuneConfig, require_finetune
from bksdm_jax.tasks.finetune.trained import Trained, what_is_trained
from bksdm_jax.training.config import require_whole_batches
from bksdm_jax.training.sharding import make_mesh

CLASS_IMAGES = "class_images"
"""The folder of a workdir with the class images that were made."""
_SHOWN = 3


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
    model = find_model(config.source(config.model), wanted_extras(config.save_config()))
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
        options = dataclasses.replace(config, caption=config.prior.prompt)
        prior = open_examples(prior_data, "train", options, config.skip_unusable)
        if is_cached(prior) != is_cached(examples) and (is_cached(prior) or not config.cache_latents):
            raise InputError(
                f"prior.folder: {prior_data} and {data} must both be images, or both cached latents; with images there "
                "and cached latents here, set cache_latents"
            )
    elif config.prior.weight and is_cached(examples) and not config.cache_latents:
        raise InputError("cache_latents: no, but the data are cached latents and class images aren't; set it to yes")
    return Inputs(model, trained, data, examples, prior_data, prior, loras)


def class_images(config: FinetuneConfig, workdir: Path) -> Sequence[Any]:
    """Makes class images in the workdir, as far as they are missing, and opens them."""
    folder = workdir / CLASS_IMAGES
    if any_process(not (folder / "metadata.csv").exists()):
        sample(_class_sampling(config), folder)
    return open_examples(epath.Path(folder))


def _class_sampling(config: FinetuneConfig) -> SampleConfig:
    prior = config.prior
    own = {} if prior.model else {"revision": config.revision, "variant": config.variant}
    own |= {} if prior.model else {"tokenizer": config.tokenizer, "prediction": config.prediction}
    own |= {} if prior.model else {"lora": config.lora, "allow_unplaced_lora": config.allow_unplaced_lora}
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
        attention=config.attention,
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
    for word, parts in split_words(config.caption, config.prior.prompt, pipeline):
        yield (
            f"caption: the tokenizer splits {shown(word)} into {len(parts)} tokens ({' '.join(parts)}); a rare word of "
            "one token is easier to learn"
        )


def split_words(caption: str, of_class: str, pipeline: Pipeline) -> Iterator[tuple[str, list[str]]]:
    """The words of a caption that the class prompt doesn't have and that are several tokens, with these."""
    known = set(of_class.lower().split())
    words = [word for word in dict.fromkeys(caption.lower().split()) if word not in known]
    for tokenizer in pipeline.tokenizers.values():
        for word, ids in zip(words, tokenizer.pieces(words), strict=True):
            if len(ids) > 1:
                yield word, tokenizer.tokens(ids)
