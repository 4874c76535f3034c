"""Distillation as one call: teacher folder and images with captions in, student pipeline folder out."""

import dataclasses
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from absl import logging
from jax.sharding import Mesh

from bksdm_jax.base.distributed import is_first, meet
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.memory import exhaustion_told, give_back
from bksdm_jax.base.precision import compute_dtype, exact_products
from bksdm_jax.base.progress import waiting
from bksdm_jax.base.workdir import claim, require_same, require_shared
from bksdm_jax.cost.chips import chip_of, peak_flops
from bksdm_jax.cost.counts import unet_cost
from bksdm_jax.cost.table import cost_table
from bksdm_jax.data.latents import CENTRE, latent_identity, require_identity
from bksdm_jax.data.loader import StreamConfig, training_batches
from bksdm_jax.data.sources import fingerprint
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pipelines.save import with_unet, write_pipeline
from bksdm_jax.pruning.prune import card_facts, initial_weights
from bksdm_jax.pruning.removal import FeaturePair, RemovalPlan
from bksdm_jax.tasks.distill.config import MAY_CHANGE, WEIGHTS, TrainConfig, program_config
from bksdm_jax.tasks.distill.features import shares, weighted_pairs
from bksdm_jax.tasks.distill.inputs import Run, open_run, save_config, sheet_sampler, student_init
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.loop import Hooks, LoopConfig, run_loop
from bksdm_jax.training.program import Program, make_program, state_shapes
from bksdm_jax.training.sample_grids import Sheets
from bksdm_jax.training.sharding import own_rows, place, place_batch, replicated, whole
from bksdm_jax.training.state import TrainState, create_state, learning_rate, make_optimizer
from bksdm_jax.training.validation import make_validation, validate

_LOSS_FACTS = ("task", "output", "feature", "min_snr_gamma", "feature_source", "feature_scales")


def distill(config: TrainConfig, workdir: Path) -> Path | None:
    """Runs, or continues, a distillation in `workdir`.

    Returns:
        the folder `model/`, or the single file in it, or None if the run was interrupted (the same call continues it).

    Raises:
        InputError: a setting, file or folder can't be used (found before the workdir is touched, where it can be
            known then), or training meets an unreadable image, a loss that is not finite, or devices with too little
            memory.
    """
    run = open_run(config)
    record = _record(config, run.teacher, run.data)
    require_same(workdir, record, MAY_CHANGE)
    pipeline = load_pipeline(run.teacher, config.variant, config.tokenizer, config.prediction)
    if run.cached:
        crop = "random" if config.random_crop else CENTRE
        identity = latent_identity(pipeline.vae, pipeline.tokenizer, config.resolution, config.flip, crop)
        require_identity(run.data, identity)
    if is_first():
        claim(workdir, record)
    meet("claimed")
    require_shared(workdir)
    _log_start(config, run, record)

    with (
        exhaustion_told("raise accumulation, fsdp or remat and run it again; launch.plan tells what is needed"),
        exact_products(config.dtype),
        jax.set_mesh(run.mesh),
        Checkpoints(workdir / "checkpoints", config.keep_checkpoints) as checkpoints,
    ):
        shapes = state_shapes(config.optimizer, run.plan, run.mesh)
        if checkpoints.latest() is None:
            state = _initial_state(config, run.plan, pipeline, shapes)
        else:
            state = checkpoints.restore(shapes)
            logging.info("continuing after step %d", int(state.step))
        done = _train(config, workdir, run, pipeline, state, checkpoints)
    if done is None:
        return None
    params = whole({"ema": done.ema, "raw": done.params}[config.save_weights])
    if not is_first():
        meet("written")
        return workdir / "model"
    facts = card_facts(config.teacher, run.plan, config.student_init, _training_facts(config, len(run.examples)))
    student = with_unet(pipeline, run.plan.student, params)
    extra = {"removal_plan.json": run.plan.to_json()}
    made = write_pipeline(workdir / "model", student, save_config(config), facts, extra)
    meet("written")
    return made


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
    run: Run,
    pipeline: Pipeline,
    state: TrainState,
    checkpoints: Checkpoints,
) -> TrainState | None:
    """From `state` to the last update; None if interrupted before it."""
    first = int(state.step)
    if first > config.steps:
        raise InputError(f"steps: {config.steps}, but the run in {workdir} has made {first} already")
    if first == config.steps:
        logging.info("all %d steps are done", config.steps)
        return state
    empty = tuple(int(token) for token in pipeline.tokenizer([""])[0])
    settings = program_config(config, run.cached, empty)
    plan, mesh = run.plan, run.mesh
    program = make_program(settings, plan, run.networks, mesh)
    frozen = _place_frozen(pipeline, program)
    with waiting("compiling the update"):
        train_step = program.update.lower(state, frozen, program.batch).compile()
    give_back()
    rows = own_rows(mesh, config.batch_size // config.accumulation)
    batches = training_batches(run.examples, pipeline.tokenizer, _stream(config), first, rows)
    rate = learning_rate(config.optimizer)
    pairs = _compared(config, plan)
    hooks = Hooks(
        _sheets(config, workdir, run, pipeline, frozen) if config.sheets.steps else None,
        _validation(config, run, pipeline, program, frozen) if run.held_out else None,
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
        flops_per_step=config.batch_size * flops_per_image(plan, config, run.networks.vae.factor),
        peak_flops=(peak_flops(chip, config.dtype) or 0.0) * mesh.size,
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
    config: TrainConfig, run: Run, pipeline: Pipeline, program: Program, frozen: dict[str, Any]
) -> Callable[[TrainState], dict[str, float]]:
    """Takes the losses on held-out images."""
    images = config.batch_size // config.accumulation
    plain = {"flip": False, "random_crop": False, "workers": 0}
    stream = dataclasses.replace(_stream(config), batch_size=images, accumulation=1, **plain)
    evaluate = make_validation(program.plain_loss, config.seed, replicated(run.mesh))
    count = -(-min(config.validation.images, len(run.held_out)) // images)

    def batches() -> Iterator[dict[str, jax.Array]]:
        rows = own_rows(run.mesh, images)
        return _placed(run.mesh, training_batches(run.held_out, pipeline.tokenizer, stream, 0, rows))

    return lambda state: validate(evaluate, state, frozen, batches, count)


def _sheets(
    config: TrainConfig, workdir: Path, run: Run, pipeline: Pipeline, frozen: dict[str, Any]
) -> Callable[[int, TrainState], None]:
    """Draws the sheet of a step."""
    captions = [run.examples[index].texts[0] for index in range(min(4, len(run.examples)))]
    sheets = Sheets(
        workdir / "samples",
        pipeline.tokenizer,
        config.sheets.prompts or captions,
        sheet_sampler(config),
        run.networks,
        dataclasses.replace(run.networks, unet=run.plan.student),
        compute_dtype(config.dtype),
        replicated(run.mesh),
    )
    return lambda number, state: sheets.draw(number, (state.ema, state.params), frozen)


def _record(config: TrainConfig, teacher: Path, data: Path) -> dict[str, Any]:
    """The settings that make a run, with folders spelled in one way, and what the captions were."""
    return dataclasses.asdict(config) | {"teacher": str(teacher), "data": str(data), "data_sha256": fingerprint(data)}


def _compared(config: TrainConfig, plan: RemovalPlan) -> tuple[tuple[FeaturePair, float], ...]:
    """The weighted pairs of features that this run compares."""
    if not config.loss.feature:
        return ()
    return weighted_pairs(plan, config.loss.feature_source, config.loss.feature_scales)


def _initial_state(config: TrainConfig, plan: RemovalPlan, pipeline: Pipeline, shapes: TrainState) -> TrainState:
    params = initial_weights(plan, student_init(config), pipeline.unet.params, config.seed)
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


def _log_start(config: TrainConfig, run: Run, record: dict[str, Any]) -> None:
    for key, value in record.items():
        logging.info("config.%s = %s", key, value)
    logging.info("%d examples; %d device(s), mesh %s", len(run.examples), run.mesh.size, dict(run.mesh.shape))
    for line in cost_table(
        run.plan.teacher, run.plan.student, run.plan.blocks, run.plan.teacher.sample_size or 64
    ).splitlines():
        logging.info("%s", line)
    for pair, weight in _compared(config, run.plan):
        logging.info("feature pair: teacher %s, student %s, weight %g", pair.teacher, pair.student, weight)
