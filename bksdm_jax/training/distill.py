"""Distillation as one call: teacher folder and images with captions in, student pipeline folder out."""

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from etils import epath
from jax.sharding import Mesh

from bksdm_jax.analysis.chips import chip_of
from bksdm_jax.analysis.cost import unet_cost
from bksdm_jax.analysis.report import cost_table
from bksdm_jax.data.cached import CachedExample
from bksdm_jax.data.latents import CENTRE, latent_identity, require_identity
from bksdm_jax.data.sources import Example, First, data_folder, fingerprint, has_split, is_cached, open_examples
from bksdm_jax.data.stream import StreamConfig, training_batches
from bksdm_jax.dtypes import compute_dtype, exact_products
from bksdm_jax.errors import InputError
from bksdm_jax.pipelines.text_to_image import SamplerConfig, require_sampler
from bksdm_jax.processes import is_first, meet
from bksdm_jax.progress import waiting
from bksdm_jax.pruning.plan import FeaturePair, RemovalPlan
from bksdm_jax.pruning.prune import StudentInit, card_facts, initial_weights, plan_student
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.config import (
    MAY_CHANGE,
    WEIGHTS,
    TrainConfig,
    program_config,
    require_generation,
    require_settings,
    require_whole_batches,
)
from bksdm_jax.training.features import shares, weighted_pairs
from bksdm_jax.training.loop import Hooks, LoopConfig, run_loop
from bksdm_jax.training.program import Program, make_program, state_shapes
from bksdm_jax.training.sharding import make_mesh, own_rows, place, place_batch, replicated, whole
from bksdm_jax.training.sheets import Sheets
from bksdm_jax.training.state import TrainState, create_state, learning_rate, make_optimizer
from bksdm_jax.training.validation import make_validation, validate
from bksdm_jax.weights.load import find_pipeline, load_architectures, load_pipeline
from bksdm_jax.weights.pipeline import Pipeline
from bksdm_jax.weights.save import SaveConfig, with_unet, write_pipeline
from bksdm_jax.workdir import claim, require_same

_VALIDATION = "validation"
_LOSS_FACTS = ("task", "output", "feature", "min_snr_gamma", "feature_source", "feature_scales")


def distill(config: TrainConfig, workdir: Path) -> Path | None:
    """Runs, or continues, a distillation in `workdir`.

    Returns:
        the folder `model/`, or the single file in it, or None if the run was interrupted (the same call continues it).

    Raises:
        InputError: a setting, file or folder can't be used (found before the workdir is touched, where it can be
            known then), or training meets an unreadable image or a loss that is not finite.
    """
    require_settings(config)
    save = SaveConfig(config.format, config.save_dtype, config.safety_checker)
    teacher = find_pipeline(config.teacher, config.revision, config.variant, save.extras())
    plan = plan_student(teacher, config.student, _student_init(config), save, config.prediction)
    require_generation(config, load_architectures(teacher, config.prediction))
    weighted_pairs(plan, config.loss.feature_source, config.loss.feature_scales)  # raises, where a name is unknown
    mesh = make_mesh(config.fsdp)
    require_whole_batches(config, mesh.size)
    data = data_folder(config.data)
    examples = open_examples(data, config.split)
    held_out = _held_out(config, data, examples)
    cached = is_cached(examples)
    if config.examples > len(examples):
        raise InputError(f"examples: {config.examples}, but {data} has {len(examples)}")
    examples = First(examples, config.examples) if config.examples else examples
    record = _record(config, teacher, data)
    require_same(workdir, record, MAY_CHANGE)
    pipeline = load_pipeline(teacher, config.variant, config.tokenizer, config.prediction)
    if config.sheets.steps:
        require_sampler(_sheet_sampler(config), pipeline.architectures())
    if cached:
        crop = "random" if config.random_crop else CENTRE
        require_identity(data, latent_identity(pipeline.vae, pipeline.tokenizer, config.resolution, config.flip, crop))
    if is_first():
        claim(workdir, record)
    meet("claimed")
    _log_start(config, plan, record, len(examples), mesh)

    with (
        exact_products(config.dtype),
        jax.set_mesh(mesh),
        Checkpoints(workdir / "checkpoints", config.keep_checkpoints) as checkpoints,
    ):
        shapes = state_shapes(config.optimizer, plan, mesh)
        if checkpoints.latest() is None:
            state = _initial_state(config, plan, pipeline, shapes)
        else:
            state = checkpoints.restore(shapes)
            logging.info("continuing after step %d", int(state.step))
        done = _train(config, workdir, plan, pipeline, examples, mesh, state, checkpoints, held_out, cached)
    if done is None:
        return None
    params = whole({"ema": done.ema, "raw": done.params}[config.save_weights])
    if not is_first():
        meet("written")
        return workdir / "model"
    facts = card_facts(config.teacher, plan, config.student_init, _training_facts(config, len(examples)))
    extra = {"removal_plan.json": plan.to_json()}
    made = write_pipeline(workdir / "model", with_unet(pipeline, plan.student, params), save, facts, extra)
    meet("written")
    return made


def _held_out(
    config: TrainConfig, data: epath.Path, examples: Sequence[Example | CachedExample]
) -> Sequence[Example | CachedExample]:
    """The split that losses are validated on; empty where there is none."""
    split = config.validation.split
    if not config.validation.images or (not split and not has_split(examples, _VALIDATION)):
        return ()
    return open_examples(data, split or _VALIDATION)


def _training_facts(config: TrainConfig, images: int) -> dict[str, object]:
    """The settings that say what was done, for the model card."""
    kept = ("steps", "batch_size", "resolution", "flip", "caption_dropout", "noise_offset", "dtype", "seed")
    facts = {"weights": WEIGHTS[config.save_weights], "images": images, **{key: getattr(config, key) for key in kept}}
    facts |= {f"loss.{key}": getattr(config.loss, key) for key in _LOSS_FACTS}
    optimizer = ("learning_rate", "weight_decay", "warmup_steps", "cosine_steps", "ema_decay")
    return facts | {f"optimizer.{key}": getattr(config.optimizer, key) for key in optimizer}


def _train(
    config: TrainConfig,
    workdir: Path,
    plan: RemovalPlan,
    pipeline: Pipeline,
    examples: Sequence[Example | CachedExample],
    mesh: Mesh,
    state: TrainState,
    checkpoints: Checkpoints,
    held_out: Sequence[Example | CachedExample],
    cached: bool,
) -> TrainState | None:
    """From `state` to the last update; None if interrupted before it."""
    first = int(state.step)
    if first > config.steps:
        raise InputError(f"steps: {config.steps}, but the run in {workdir} has made {first} already")
    if first == config.steps:
        logging.info("all %d steps are done", config.steps)
        return state
    empty = tuple(int(token) for token in pipeline.tokenizer([""])[0])
    settings = program_config(config, cached, empty)
    program = make_program(settings, plan, pipeline.architectures(), mesh)
    frozen = _place_frozen(pipeline, program)
    with waiting("compiling the update"):
        train_step = program.update.lower(state, frozen, program.batch).compile()
    rows = own_rows(mesh, config.batch_size // config.accumulation)
    batches = training_batches(examples, pipeline.tokenizer, _stream(config), first, rows)
    rate = learning_rate(config.optimizer)
    pairs = _compared(config, plan)
    hooks = Hooks(
        _sheets(config, workdir, plan, pipeline, examples, frozen, mesh) if config.sheets.steps else None,
        _validation(config, pipeline, program, frozen, mesh, held_out) if held_out else None,
        lambda done, values: {"learning_rate": float(rate(done))} | shares(pairs, values),
    )
    chip = chip_of(mesh.devices.flat[0].device_kind)
    schedule = LoopConfig(
        steps=config.steps,
        log_every=config.log_every,
        checkpoint_every=config.checkpoint_every,
        sheet_every=config.sheets.every,
        images_per_step=config.batch_size,
        validate_every=config.validation.every,
        flops_per_step=config.batch_size * flops_per_image(plan, config, pipeline.vae.config.factor),
        peak_flops=chip.flops * mesh.size if chip else 0.0,
        profile_step=config.profile_step,
    )
    state, finished = run_loop(state, frozen, train_step, _placed(mesh, batches), schedule, workdir, checkpoints, hooks)
    return state if finished else None


def _stream(config: TrainConfig) -> StreamConfig:
    return StreamConfig(
        config.resolution,
        config.batch_size,
        config.accumulation,
        config.flip,
        config.seed,
        config.random_crop,
        config.workers,
    )


def flops_per_image(plan: RemovalPlan, config: TrainConfig, vae_factor: int) -> float:
    """Of the U-Nets' products in an update: the teacher forward, the student forward and twice backward.

    With all computed anew (`remat`) the student runs forward once more; that isn't counted, since it isn't progress.
    """
    size = config.resolution // vae_factor
    teacher, student = (
        sum(stage.full_macs for stage in unet_cost(unet, size).values()) for unet in (plan.teacher, plan.student)
    )
    return 2.0 * (teacher * config.loss.distils + 3 * student)


def _validation(
    config: TrainConfig,
    pipeline: Pipeline,
    program: Program,
    frozen: dict[str, Any],
    mesh: Mesh,
    examples: Sequence[Example | CachedExample],
) -> Callable[[TrainState], dict[str, float]]:
    """Takes the losses on held-out images."""
    images = config.batch_size // config.accumulation
    plain = {"flip": False, "random_crop": False, "workers": 0}
    stream = dataclasses.replace(_stream(config), batch_size=images, accumulation=1, **plain)
    evaluate = make_validation(program.loss, config.seed, replicated(mesh))
    count = -(-min(config.validation.images, len(examples)) // images)

    def batches() -> Iterator[dict[str, jax.Array]]:
        return _placed(mesh, training_batches(examples, pipeline.tokenizer, stream, 0, own_rows(mesh, images)))

    return lambda state: validate(evaluate, state, frozen, batches, count)


def _sheets(
    config: TrainConfig,
    workdir: Path,
    plan: RemovalPlan,
    pipeline: Pipeline,
    examples: Sequence[Example | CachedExample],
    frozen: dict[str, Any],
    mesh: Mesh,
) -> Callable[[int, TrainState], None]:
    """Draws the sheet of a step."""
    architectures = pipeline.architectures()
    sheets = Sheets(
        workdir / "samples",
        pipeline.tokenizer,
        config.sheets.prompts or [examples[index].texts[0] for index in range(min(4, len(examples)))],
        _sheet_sampler(config),
        architectures,
        dataclasses.replace(architectures, unet=plan.student),
        compute_dtype(config.dtype),
        replicated(mesh),
    )
    return lambda number, state: sheets.draw(number, (state.ema, state.params), frozen)


def _record(config: TrainConfig, teacher: Path, data: Path) -> dict[str, Any]:
    """The settings that make a run, with folders spelled in one way, and what the captions were."""
    return dataclasses.asdict(config) | {"teacher": str(teacher), "data": str(data), "data_sha256": fingerprint(data)}


def _sheet_sampler(config: TrainConfig) -> SamplerConfig:
    sheets = config.sheets
    return SamplerConfig(
        sheets.steps, sheets.guidance_scale, config.resolution, seed=config.seed, attention=config.attention
    )


def _compared(config: TrainConfig, plan: RemovalPlan) -> tuple[tuple[FeaturePair, float], ...]:
    """The weighted pairs of features that this run compares."""
    if not config.loss.feature:
        return ()
    return weighted_pairs(plan, config.loss.feature_source, config.loss.feature_scales)


def _student_init(config: TrainConfig) -> StudentInit:
    return StudentInit(config.student_init, config.init_revision, config.init_variant)


def _initial_state(config: TrainConfig, plan: RemovalPlan, pipeline: Pipeline, shapes: TrainState) -> TrainState:
    params = initial_weights(plan, _student_init(config), pipeline.unet.params, config.seed)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    params = place(params, shardings.params)
    optimizer = make_optimizer(config.optimizer)
    return jax.jit(lambda p: create_state(p, optimizer), out_shardings=shardings)(params)


def _place_frozen(pipeline: Pipeline, program: Program) -> dict[str, Any]:
    """Teacher, VAE and text encoder on the devices, as the program takes them."""
    frozen = {"teacher": pipeline.unet, "vae": pipeline.vae, "text_encoder": pipeline.text_encoder}
    return {
        name: place(
            jax.tree.map(lambda leaf, like: np.asarray(leaf).astype(like.dtype), network.params, program.frozen[name]),
            jax.tree.map(lambda like: like.sharding, program.frozen[name]),
        )
        for name, network in frozen.items()
    }


def _placed(mesh: Mesh, batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, jax.Array]]:
    for batch in batches:
        yield place_batch(mesh, batch)


def _log_start(config: TrainConfig, plan: RemovalPlan, record: dict[str, Any], count: int, mesh: Mesh) -> None:
    for key, value in record.items():
        logging.info("config.%s = %s", key, value)
    logging.info("%d examples; %d device(s), mesh %s", count, mesh.size, dict(mesh.shape))
    for line in cost_table(plan, plan.teacher.sample_size or 64).splitlines():
        logging.info("%s", line)
    for pair, weight in _compared(config, plan):
        logging.info("feature pair: teacher %s, student %s, weight %g", pair.teacher, pair.student, weight)
