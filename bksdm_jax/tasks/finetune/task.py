"""Fine-tuning: a model and images in, a fine-tuned pipeline or a LoRA out."""

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from bksdm_jax.base import trees
from bksdm_jax.base.distributed import barrier, is_first
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.paths import local_path
from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.base.workdir import changed_settings, claim, require_same, require_same_parts, require_shared
from bksdm_jax.cost.counts import unet_cost
from bksdm_jax.data.checked_images import SKIPPED, check_images, note_checked
from bksdm_jax.data.loader import LoaderConfig, batch_names, training_batches
from bksdm_jax.data.skipping import Skipping
from bksdm_jax.data.sources import facts_of, is_cached
from bksdm_jax.formats.write_lora import write_lora
from bksdm_jax.pipelines.lora import lora_metadata, stored_layers, with_loras
from bksdm_jax.pipelines.model_card import CardFacts
from bksdm_jax.pipelines.pipeline import Architectures, Pipeline
from bksdm_jax.pipelines.save import write_pipeline
from bksdm_jax.pruning.stored_plan import PLAN
from bksdm_jax.tasks.finetune.config import MAY_CHANGE, MAY_CHANGE_AND_IS_NOTED, FinetuneConfig
from bksdm_jax.tasks.finetune.images import class_seed, loaded, loaded_prior
from bksdm_jax.tasks.finetune.inputs import (
    CLASS_IMAGES,
    Inputs,
    class_images,
    oddities,
    open_inputs,
    plan_beside,
)
from bksdm_jax.tasks.finetune.metadata import training_metadata
from bksdm_jax.tasks.finetune.objective import PRIOR, Problem, make_objective
from bksdm_jax.tasks.finetune.trained import Trained
from bksdm_jax.tasks.noise import Augmentation
from bksdm_jax.training.config import WEIGHTS
from bksdm_jax.training.records import bring_back
from bksdm_jax.training.sample_grids import Row, sample_grids
from bksdm_jax.training.task import Evaluator, Task
from bksdm_jax.training.train_step import Objective
from bksdm_jax.training.trainer import checkpoint_folder, train, train_again

LORA_FILE = "lora.safetensors"
"""The name of a trained LoRA in its workdir."""
_MODEL = "model_sha256"  # known once its weights have been read


@one_run(is_first)
def finetune(config: FinetuneConfig, workdir: Path) -> Path | None:
    """Runs, or continues, a fine-tuning in `workdir`.

    Returns:
        the folder `model/` (or in the first process the single file in it), or the file of a LoRA; None if the run was
        interrupted (the same call continues it).

    Raises:
        InputError: a setting, file or folder can't be used (where possible, raised before the workdir is touched), or
            as `trainer.train`.
    """
    with waiting("opening the model and the data", QUIET):
        inputs = open_inputs(config)
    record = dataclasses.asdict(config) | {
        "model": str(inputs.model.path),
        "data": str(inputs.data),
        "data_facts": facts_of(inputs.data, inputs.examples),
    }
    if inputs.prior_data is not None:
        record["prior_facts"] = facts_of(inputs.prior_data, inputs.prior)
    if inputs.loras:
        record["loras"] = [lora.facts() for lora in inputs.loras]
    if config.checkpoints:
        bring_back(checkpoint_folder(config, workdir), workdir)
    may_change = {*MAY_CHANGE, *MAY_CHANGE_AND_IS_NOTED}
    require_same(workdir, record, {*may_change, _MODEL}, is_first())
    for found, where in ((inputs.examples, inputs.data), (inputs.prior, inputs.prior_data)):
        check_images(found, where, config.skip_unusable, workdir)
    with waiting("reading the model", QUIET):
        pipeline = with_loras(inputs.model.read(), inputs.loras)
        record[_MODEL] = pipeline.identity()
    require_same_parts(workdir, _MODEL, record[_MODEL], "model")
    inputs, both = _skipping(config, inputs, workdir / SKIPPED), None
    if not config.skip_unusable:
        both = _loaded(config, pipeline, inputs)  # so that what can't be used is told now
    if is_first():
        claim(workdir, record)
    barrier("claimed")
    require_shared(workdir)
    note_checked(inputs.examples, config.skip_unusable, workdir)
    _log_start(config, inputs, pipeline)
    examples, prior = both or _loaded(config, pipeline, inputs)
    if config.prior.weight and not prior:
        prior = loaded_prior(config, pipeline, class_images(config, workdir), workdir / CLASS_IMAGES)
    task = FinetuneTask(config, inputs.trained, pipeline, examples, prior)
    del pipeline  # the task drops what it no longer needs
    return train(task, config, workdir, may_change=may_change)


def finetune_again(config: FinetuneConfig) -> str:
    """Computes the skipped update in the folder `config.replay` again, and describes it; writes nothing.

    Class images that were made are those of the run whose folder that is. Raises `InputError` if the folder, or a
    setting or file of the run, can't be used.
    """
    inputs = _skipping(config, open_inputs(config))
    pipeline = with_loras(inputs.model.read(), inputs.loras)
    examples, prior = _loaded(config, pipeline, inputs)
    if config.prior.weight and not prior:
        where = local_path("replay", config.replay).absolute().parent.parent / CLASS_IMAGES
        if not (where / "metadata.csv").is_file():
            raise InputError(f"replay: {config.replay}: not a folder not_finite/STEP of a run, which has {where}")
        prior = loaded_prior(config, pipeline, class_images(config, where.parent), where)
    return train_again(FinetuneTask(config, inputs.trained, pipeline, examples, prior), config)


def _loaded(config: FinetuneConfig, pipeline: Pipeline, inputs: Inputs) -> tuple[Sequence[Any], Sequence[Any]]:
    """The images, and the class images as far as they exist."""
    prior = loaded_prior(config, pipeline, inputs.prior, inputs.prior_data) if inputs.prior else ()
    return loaded(config, pipeline, inputs.examples, inputs.data), prior


def _skipping(config: FinetuneConfig, inputs: Inputs, path: Path | None = None) -> Inputs:
    """The inputs; those that skip unusable images list them in `path`."""
    if not config.skip_unusable:
        return inputs
    skipping = [
        some if is_cached(some) or not some else Skipping(some, path) for some in (inputs.examples, inputs.prior)
    ]
    return dataclasses.replace(inputs, examples=skipping[0], prior=skipping[1])


def make_problem(config: FinetuneConfig, trained: Trained, empty: Any = None) -> Problem:
    """A run's problem; caption dropout needs `empty`, the empty caption's inputs."""
    augmentation = Augmentation(config.caption_dropout, empty or {}, config.noise_offset)
    own = (config.prior.weight, config.min_snr_gamma, config.attention, config.remat, config.norms)
    return Problem(trained, *own, augmentation)


def objective_of(config: FinetuneConfig, problem: Problem, cached: bool) -> Objective:
    """A run's objective; `cached`: batches are of latents. Sample grids need the autoencoder too."""
    shape = (config.accumulation, config.batch_size // config.accumulation)
    whole = not cached or config.sheets.steps > 0
    return make_objective(problem, config.resolution, shape, compute_dtype(config.dtype), cached, whole)


class FinetuneTask(Task):
    """Fine-tuning as the trainer takes it, see `training.task.Task`."""

    def __init__(
        self,
        config: FinetuneConfig,
        trained: Trained,
        pipeline: Pipeline,
        examples: Sequence[Any],
        prior: Sequence[Any] = (),
    ) -> None:
        """`examples` and class images, `prior`, are as `loaded` returns them."""
        self._config, self._trained, self._pipeline = config, trained, pipeline
        self._examples, self._prior = examples, prior
        self._networks = pipeline.architectures
        cached = config.cache_latents or is_cached(examples)
        problem = make_problem(config, trained, pipeline.empty_inputs())
        self.objective = objective_of(config, problem, cached)
        self.flops_per_image = flops_per_image(config, self._networks)
        less = "" if trained.scales else "train a LoRA (adapter.rank), or "
        self.memory_advice = f"{less}raise accumulation, fsdp or remat; launch.plan shows what is needed"
        own = LoaderConfig.of(config)
        self._loader = dataclasses.replace(own, workers=0) if cached else own  # there is nothing to decode
        self._prior_loader = dataclasses.replace(self._loader, seed=class_seed(config.seed))

    def initial_params(self) -> Any:
        """The weights that are trained, or adapters that change nothing yet."""
        return self._trained.initial(self._pipeline.params, self._config.seed)

    def frozen_params(self) -> Iterator[tuple[str, Any]]:
        """The leaves that aren't trained; the task drops its host copy of the others."""
        frozen, writes_lora = self._trained.frozen(self._pipeline.params), bool(self._trained.scales)
        networks = {
            name: dataclasses.replace(network, params={} if writes_lora else frozen.get(name, {}))
            for name, network in self._pipeline.networks.items()
        }
        self._pipeline = dataclasses.replace(self._pipeline, networks=networks)
        for name in self.objective.frozen:
            yield name, frozen.pop(name)

    def batches(self, step: int, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Images or latents with captions, see `training_batches`, and as many class images under `PRIOR`."""
        captions = self._pipeline.caption_inputs
        own = training_batches(self._examples, captions, self._loader, step, rows)
        if not self._prior:
            return own
        return _both(own, training_batches(self._prior, captions, self._prior_loader, step, rows))

    def example_names(self, step: int) -> list[str]:
        """The names of the images of the update after `step`."""
        own = batch_names(self._examples, self._loader, step)
        return own + (batch_names(self._prior, self._prior_loader, step) if self._prior else [])

    def evaluators(self, mesh: Mesh, workdir: Path) -> Mapping[str, Evaluator]:
        """`samples`: of a LoRA with a row of the model without it."""
        config, trained = self._config, self._trained
        if not config.sheets.steps:
            return {}
        params = jax.jit(trained.merged) if trained.scales else trained.whole
        rows = [Row("fine-tuned model", self._networks, params)]
        if trained.scales:
            rows.insert(0, Row("model", self._networks, lambda _, frozen: dict(frozen), trained=False))
        first = [self._examples[i].texts[0] for i in range(min(4, len(self._examples)))]
        prompts = config.sheets.prompts or list(dict.fromkeys(first))
        captions, sampler = self._pipeline.caption_inputs, config.grid_sampler(self._networks.schedule)
        dtype, folder = compute_dtype(config.dtype), workdir / "samples"
        return {"samples": sample_grids(folder, captions, prompts, sampler, rows, dtype, mesh, config.sheets.every)}

    def write(self, params: Any, workdir: Path) -> Path:
        """Writes the fine-tuned pipeline with its model card to `model/`, or the LoRA, and returns its path."""
        config, trained = self._config, self._trained
        if trained.scales:
            layers = stored_layers(trained.adapters(params))
            metadata = lora_metadata(self._networks) | training_metadata(config, self._examples, len(self._prior))
            path = workdir / LORA_FILE
            write_lora(path, layers, config.adapter.layout, config.save_dtype or "float16", metadata)
            return path
        networks = dict(self._pipeline.networks)
        for name in trained.names:
            whole = trees.flatten(networks[name].params) | trees.flatten(params[name])
            own = {path: np.asarray(leaf, np.float32) for path, leaf in whole.items()}
            networks[name] = dataclasses.replace(networks[name], params=trees.unflatten(own))
        pipeline = dataclasses.replace(self._pipeline, networks=networks)
        facts = CardFacts(config.model, (), "", self._training_facts(), trained=trained.labels)
        plan = plan_beside(self._pipeline.path)
        extra = {PLAN: read_json(plan)} if plan.is_file() else {}  # so that LoRAs of its teacher can still be converted
        return write_pipeline(workdir / "model", pipeline, config.save_config(), facts, extra)

    def result(self, workdir: Path) -> Path:
        """What the first process writes."""
        return workdir / (LORA_FILE if self._trained.scales else "model")

    def _training_facts(self) -> dict[str, object]:
        """The settings for the model card."""
        config = self._config
        kept = ("caption", "only", "steps", "batch_size", "resolution", "flip", "random_crop", "dtype", "seed")
        kept += ("caption_dropout", "noise_offset", "min_snr_gamma")
        facts: dict[str, object] = {"weights": WEIGHTS[config.save_weights], "images": len(self._examples)}
        facts |= {key: getattr(config, key) for key in kept if getattr(config, key) not in ("", ())}
        if config.prior.weight:
            facts |= {"class images": len(self._prior)}
            facts |= {f"prior.{key}": getattr(config.prior, key) for key in ("prompt", "weight")}
        return facts | {"optimizer.learning_rate": config.optimizer.learning_rate}


def _both(own: Iterator[dict[str, Any]], prior: Iterator[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    try:
        for batch, of_class in zip(own, prior, strict=True):
            yield batch | {PRIOR: of_class}
    finally:
        own.close()
        prior.close()


def unet_passes(config: FinetuneConfig) -> int:
    """To how many forward passes the U-Net's on an image are equal: forward, and gradients of activations and weights.

    Gradients of weights are left out where only adapters or some modules are trained, and recomputation (`remat`).
    """
    return 2 if config.adapter.rank or config.only else 3


def flops_per_image(config: FinetuneConfig, networks: Architectures) -> float:
    """FLOPs of the U-Net's products, as usual for MFU; a class image is counted with its instance image."""
    size = config.resolution // networks.factor
    forward = sum(stage.full_macs for stage in unet_cost(networks.denoiser, size).values())
    return 2.0 * forward * unet_passes(config) * (2 if config.prior.weight else 1)


def _log_start(config: FinetuneConfig, inputs: Inputs, pipeline: Pipeline) -> None:
    for line in changed_settings(config):
        logging.info("%s", line)
    logging.info("%d images in %s; %s", len(inputs.examples), inputs.data, inputs.trained.summary())
    if is_first():
        for line in oddities(config, inputs, pipeline):
            logging.warning("%s", line)
