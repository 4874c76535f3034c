"""Distillation: teacher and images with captions in, student pipeline folder out."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from absl import logging
from jax.sharding import Mesh

from bksdm_jax.base.distributed import barrier, is_first
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.base.workdir import changed_settings, claim, require_same, require_same_parts, require_shared
from bksdm_jax.cost.counts import unet_cost
from bksdm_jax.cost.table import cost_table
from bksdm_jax.data.checked_images import SKIPPED, check_images, note_checked
from bksdm_jax.data.latents import CENTRE, latent_identity, require_identity
from bksdm_jax.data.loader import LoaderConfig, batch_names, training_batches
from bksdm_jax.data.pair_examples import PairExamples
from bksdm_jax.data.skipping import Skipping
from bksdm_jax.data.sources import facts_of
from bksdm_jax.pipelines.lora import with_loras
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pipelines.save import write_pipeline
from bksdm_jax.pruning.prune import card_facts
from bksdm_jax.pruning.removal import FeaturePair, RemovalPlan
from bksdm_jax.pruning.targets import read_target
from bksdm_jax.reports.score_curves import points_over_updates, write_score_plot
from bksdm_jax.tasks.distill.config import MAY_CHANGE, MAY_CHANGE_AND_IS_NOTED, DistillConfig
from bksdm_jax.tasks.distill.features import shares, weighted_pairs
from bksdm_jax.tasks.distill.inputs import Inputs, oddities, open_inputs
from bksdm_jax.tasks.distill.objective import Problem, make_batch_loss, make_objective
from bksdm_jax.tasks.noise import Augmentation
from bksdm_jax.training.config import WEIGHTS
from bksdm_jax.training.records import bring_back
from bksdm_jax.training.sample_grids import Row, sample_grids
from bksdm_jax.training.scoring import SCORES, scoring
from bksdm_jax.training.sharding import own_rows
from bksdm_jax.training.task import Evaluator, Task
from bksdm_jax.training.train_step import Frozen, Objective
from bksdm_jax.training.trainer import checkpoint_folder, train, train_again
from bksdm_jax.training.validation import validation

_TEACHER = "teacher_sha256"  # known once its weights have been read


@one_run(is_first)
def distill(config: DistillConfig, workdir: Path) -> Path | None:
    """Runs, or continues, a distillation in `workdir`.

    Returns:
        the folder `model/` or, in the first process, the single file in it; None if the run was interrupted (the same
        call continues it).

    Raises:
        InputError: a setting, file or folder can't be used (where possible, raised before the workdir is touched), or
            as `trainer.train`.
    """
    with waiting("opening the teacher and the data", QUIET):
        inputs = open_inputs(config)
    record = dataclasses.asdict(config) | {  # resolved paths, and a hash of the captions
        "teacher": str(inputs.teacher.path),
        "data": str(inputs.data),
        "data_facts": facts_of(inputs.data, inputs.found),
    }
    if inputs.loras:
        record["loras"] = [lora.facts() for lora in inputs.loras]
    if read_target(config.student):
        record["removed"] = list(inputs.plan.removed)
    if config.checkpoints:
        bring_back(checkpoint_folder(config, workdir), workdir)
    may_change = {*MAY_CHANGE, *MAY_CHANGE_AND_IS_NOTED}
    require_same(workdir, record, {*may_change, _TEACHER}, is_first())
    check_images(inputs.found, inputs.data, config.skip_unusable, workdir)
    inputs = _skipping(config, inputs, workdir / SKIPPED)
    with waiting("preparing the distillation", QUIET):
        task = DistillTask(config, inputs)
    record[_TEACHER] = task.teacher_sha256
    require_same_parts(workdir, _TEACHER, record[_TEACHER], "teacher")
    if is_first():
        claim(workdir, record)
    barrier("claimed")
    require_shared(workdir)
    note_checked(inputs.found, config.skip_unusable, workdir)
    _log_start(config, inputs)
    return train(task, config, workdir, may_change=may_change)


def distill_again(config: DistillConfig) -> str:
    """Computes the skipped update in the folder `config.replay` again, and describes it; writes nothing.

    Raises `InputError` if the folder, or a setting or file of the run, can't be used.
    """
    with waiting("opening the teacher and the data", QUIET):
        inputs = open_inputs(config)
    inputs = _skipping(config, inputs)
    with waiting("preparing the distillation", QUIET):
        task = DistillTask(config, inputs)
    return train_again(task, config)


def _skipping(config: DistillConfig, inputs: Inputs, path: Path | None = None) -> Inputs:
    """The inputs; those that skip unusable images list them in `path`."""
    if not (config.skip_unusable and isinstance(inputs.found, PairExamples)):
        return inputs
    examples, held_out = (Skipping(some, path) for some in (inputs.examples, inputs.held_out))
    return dataclasses.replace(inputs, examples=examples, held_out=held_out)


def make_problem(config: DistillConfig, plan: RemovalPlan, networks: Architectures, empty: Any = None) -> Problem:
    """A run's distillation problem; caption dropout needs `empty`, the empty caption's inputs."""
    augmentation = Augmentation(config.caption_dropout, empty or {}, config.noise_offset)
    return Problem(plan, networks, config.loss, config.attention, config.remat, config.norms, augmentation)


def objective_of(config: DistillConfig, problem: Problem, cached: bool) -> Objective:
    """A run's objective; `cached`: its data are cached latents. Sample grids need the teacher too."""
    shape, draws = (config.accumulation, config.batch_size // config.accumulation), config.sheets.steps > 0
    return make_objective(problem, config.resolution, shape, compute_dtype(config.dtype), cached, with_teacher=draws)


class DistillTask(Task):
    """Distillation as the trainer takes it, see `training.task.Task`."""

    memory_advice = "raise accumulation, fsdp or remat and run it again; launch.plan shows what is needed"

    def __init__(self, config: DistillConfig, inputs: Inputs) -> None:
        """Reads the teacher; raises `InputError` if its weights can't be read or cached latents are another model's."""
        self._config, self._inputs = config, inputs
        self._pipeline = with_loras(inputs.teacher.read(), inputs.loras)
        self.teacher_sha256 = self._pipeline.identity()
        if inputs.cached:
            crop = "random" if config.random_crop else CENTRE
            identity = latent_identity(self._pipeline, config.resolution, config.flip, crop)
            require_identity(inputs.data, identity)
        self._networks = self._pipeline.architectures
        self._pairs = _compared(config, inputs.plan)
        problem = make_problem(config, inputs.plan, self._networks, self._pipeline.empty_inputs())
        self.objective = objective_of(config, problem, inputs.cached)
        self.flops_per_image = flops_per_image(config, inputs.plan, self._networks)
        self._plain_loss = make_batch_loss(problem.plain(), compute_dtype(config.dtype))

    def initial_params(self) -> Any:
        """The student's initial weights, from `student_init`."""
        return self._inputs.start.read(self._pipeline.denoiser.params, self._config.seed)

    def frozen_params(self) -> Iterator[tuple[str, Any]]:
        """The teacher's networks; the task drops its host copy of the U-Net."""
        teacher = self._pipeline.denoiser.params
        self._pipeline = self._pipeline.with_denoiser(self._inputs.plan.student, {})
        if "teacher" in self.objective.frozen:
            yield "teacher", teacher
        del teacher  # the last reference, once the trainer has moved on
        for name in self._networks.frozen:
            yield name, self._pipeline.networks[name].params

    def batches(self, step: int, rows: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Images or cached latents with captions, see `training_batches`."""
        loader = LoaderConfig.of(self._config)
        return training_batches(self._inputs.examples, self._pipeline.caption_inputs, loader, step, rows)

    def example_names(self, step: int) -> list[str]:
        """The names of the images of the update after `step`."""
        return batch_names(self._inputs.examples, LoaderConfig.of(self._config), step)

    def evaluators(self, mesh: Mesh, workdir: Path) -> Mapping[str, Evaluator]:
        """`validation`, if there are held-out images, `scores`, if there are metrics, and `samples`."""
        found = {}
        if self._inputs.held_out:
            found["validation"] = self._validation(mesh)
        if self._config.evaluators:
            found[SCORES] = self._scores(mesh)
        if self._config.sheets.steps:
            found["samples"] = self._samples(mesh, workdir / "samples")
        return found

    def facts(self, metrics: Mapping[str, float]) -> dict[str, float]:
        """Each feature pair's share of the feature loss."""
        return shares(self._pairs, metrics)

    def write(self, params: Any, workdir: Path) -> Path:
        """Writes the student's pipeline, removal plan and model card to `model/`, and returns its path.

        The scores over the updates, if there are any, are drawn in `scores.svg`.
        """
        if points := points_over_updates(workdir / f"{SCORES}.csv", self._config.student):
            write_score_plot(workdir / f"{SCORES}.svg", points)
        config, plan = self._config, self._inputs.plan
        facts = card_facts(config.teacher, plan, config.student_init, self._training_facts())
        student = self._pipeline.with_denoiser(plan.student, params)
        extra = {"removal_plan.json": plan.to_json()}
        return write_pipeline(workdir / "model", student, config.save_config(), facts, extra)

    def result(self, workdir: Path) -> Path:
        """The folder that the first process writes."""
        return workdir / "model"

    def _training_facts(self) -> dict[str, object]:
        """The settings for the model card."""
        config = self._config
        kept = ("steps", "batch_size", "resolution", "flip", "caption_dropout", "noise_offset", "dtype", "seed")
        facts: dict[str, object] = {"weights": WEIGHTS[config.save_weights], "images": len(self._inputs.examples)}
        facts |= {key: getattr(config, key) for key in kept}
        facts |= {f"loss.{field.name}": getattr(config.loss, field.name) for field in dataclasses.fields(config.loss)}
        optimizer = ("learning_rate", "weight_decay", "warmup_steps", "cosine_steps", "ema_decay")
        return facts | {f"optimizer.{key}": getattr(config.optimizer, key) for key in optimizer}

    def _validation(self, mesh: Mesh) -> Evaluator:
        """Losses on held-out images, without flips, random crops, augmentation and noise-dependent weights."""
        config, held_out = self._config, self._inputs.held_out
        images = config.batch_size // config.accumulation
        plain = {"flip": False, "random_crop": False, "workers": 0}
        loader = dataclasses.replace(LoaderConfig.of(config), batch_size=images, accumulation=1, **plain)
        count, rows = -(-min(config.validation.images, len(held_out)) // images), own_rows(mesh, images)
        batches = functools.partial(training_batches, held_out, self._pipeline.caption_inputs, loader, 0, rows)
        return validation(self._plain_loss, batches, count, config.validation.every, config.seed, mesh)

    def _scores(self, mesh: Mesh) -> Evaluator:
        """Scores of the student's moving average."""
        config, student = self._config, self._networks.with_denoiser(self._inputs.plan.student)
        captions, sampler = self._pipeline.caption_inputs, config.scoring_sampler(self._networks.schedule)
        how, dtype = (config.scoring, config.evaluators), compute_dtype(config.dtype)
        return scoring(*how, captions, self._inputs.prompts, sampler, student, dtype, mesh)

    def _samples(self, mesh: Mesh, folder: Path) -> Evaluator:
        """Sample grids: teacher, the student's moving average, the student's weights."""
        config, examples, dtype = self._config, self._inputs.examples, compute_dtype(self._config.dtype)
        prompts = config.sheets.prompts or [examples[index].texts[0] for index in range(min(4, len(examples)))]
        name, student = self._networks.kind.denoiser, self._networks.with_denoiser(self._inputs.plan.student)

        def params(unet: Any, frozen: Frozen) -> dict[str, Any]:
            return {name: unet} | {other: frozen[other] for other in self._networks.frozen}

        rows = (
            Row("teacher", self._networks, lambda _, frozen: params(frozen["teacher"], frozen), trained=False),
            Row("student", student, params),
        )
        captions, sampler = self._pipeline.caption_inputs, config.grid_sampler(self._networks.schedule)
        return sample_grids(folder, captions, prompts, sampler, rows, dtype, mesh, config.sheets.every)


def flops_per_image(config: DistillConfig, plan: RemovalPlan, networks: Architectures) -> float:
    """FLOPs of the U-Nets' products: teacher forward, student forward and backward (twice the forward).

    Recomputation (`remat`) isn't counted, as usual for MFU.
    """
    size = config.resolution // networks.factor
    costs = [unet_cost(unet, size).values() for unet in (plan.teacher, plan.student)]
    teacher, student = (sum(stage.full_macs for stage in cost) for cost in costs)
    return 2.0 * (teacher * config.loss.distils + 3 * student)


def _compared(config: DistillConfig, plan: RemovalPlan) -> tuple[tuple[FeaturePair, float], ...]:
    """The weighted feature pairs that this run compares."""
    if not config.loss.feature:
        return ()
    return weighted_pairs(plan, config.loss.feature_source, config.loss.feature_scales)


def _log_start(config: DistillConfig, inputs: Inputs) -> None:
    for line in changed_settings(config):
        logging.info("%s", line)
    logging.info("%d examples in %s, %d held out", len(inputs.examples), inputs.data, len(inputs.held_out))
    if is_first():
        for line in oddities(config, inputs):
            logging.warning("%s", line)
    plan = inputs.plan
    with waiting("counting the student's cost", QUIET):
        table = cost_table(plan.teacher, plan.student, plan.blocks, plan.teacher.sample_size or 64)
    for line in table.splitlines():
        logging.info("%s", line)
    for pair, weight in _compared(config, plan):
        logging.info("feature pair: teacher %s, student %s, weight %g", pair.teacher, pair.student, weight)
