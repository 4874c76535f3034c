"""Distillation as one call: teacher folder and images with captions in, student pipeline folder out."""

import dataclasses
import math
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import logging
from jax.sharding import Mesh

from bksdm_jax.analysis.report import cost_table
from bksdm_jax.data.cached import CachedExample
from bksdm_jax.data.latents import CENTRE, latent_identity, require_identity
from bksdm_jax.data.sources import Example, data_folder, fingerprint, is_cached, open_examples
from bksdm_jax.data.stream import StreamConfig, training_batches
from bksdm_jax.dtypes import cast_frozen, compute_dtype, exact_products
from bksdm_jax.errors import InputError, finite_number, whole_number
from bksdm_jax.models.attention import require_attention
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.pipelines.text_to_image import MOST_SEED, SamplerConfig, require_sampler
from bksdm_jax.progress import waiting
from bksdm_jax.pruning.plan import RemovalPlan
from bksdm_jax.pruning.prune import StudentInit, card_facts, initial_weights, plan_student
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.loop import LoopConfig, run_loop
from bksdm_jax.training.losses import LossWeights
from bksdm_jax.training.sharding import batch_sharding, make_mesh, parameter_shardings, place_batch, replicated
from bksdm_jax.training.sheets import SheetConfig, Sheets
from bksdm_jax.training.state import OptimizerConfig, TrainState, create_state, make_optimizer
from bksdm_jax.training.step import Problem, make_train_step
from bksdm_jax.weights.load import find_pipeline, load_pipeline
from bksdm_jax.weights.pipeline import Pipeline
from bksdm_jax.weights.save import SaveConfig, with_unet, write_pipeline
from bksdm_jax.workdir import claim, require_same

_MAY_CHANGE = (
    "steps",
    "log_every",
    "checkpoint_every",
    "keep_checkpoints",
    "sheets",
    "fsdp",
    "attention",
    "format",
    "save_dtype",
    "safety_checker",
    "workers",
    "revision",  # the teacher's folder is recorded, with its commit
)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """A distillation run.

    Attributes:
        teacher: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        revision: branch, tag or commit of a teacher from the hub.
        variant: of the teacher's weights, `fp16`, `non_ema`, ...; empty: the plain ones.
        student: a preset, or a comma-separated list of removed blocks.
        student_init, init_revision, init_variant: `teacher`, `random`, or a pipeline whose U-Net is that student, as
            `StudentInit` has them: training goes on from it.
        data: image folder with `metadata.csv`, folder of a TFDS set with `image` and `text` or with cached latents, or
            `shapes_world/demo`.
        split: of the TFDS set.
        resolution: pixels.
        flip: mirror half of the images.
        random_crop: crop anywhere along the long side, not in the middle.
        workers: processes that read and decode images; 0: threads do.
        seed: of everything random.
        steps: optimiser updates.
        batch_size: images per optimiser update.
        accumulation: micro-batches that an update is made of.
        dtype: of the networks' computations.
        attention: of the U-Nets, a key of `attention.IMPLEMENTATIONS`.
        fsdp: how many devices share one copy of the parameters.
        log_every, checkpoint_every: optimiser updates.
        keep_checkpoints: how many of the newest stay; 0: all.
        format, save_dtype, safety_checker: of the final `model/`, as `SaveConfig` has them.
        tokenizer, prediction: what a single-file teacher doesn't say: a folder or id on the hub; `epsilon` or
            `v_prediction`.
        loss, optimizer, sheets: see there.
    """

    teacher: str
    student: str
    data: str
    split: str = "train"
    student_init: str = "teacher"
    resolution: int = 512
    flip: bool = True
    seed: int = 1234
    steps: int = 50_000
    batch_size: int = 256
    accumulation: int = 4
    dtype: str = "bfloat16"
    fsdp: int = 1
    log_every: int = 50
    checkpoint_every: int = 1000
    keep_checkpoints: int = 3
    format: str = "safetensors"
    loss: LossWeights = LossWeights()
    optimizer: OptimizerConfig = OptimizerConfig()
    sheets: SheetConfig = SheetConfig()
    revision: str = ""
    variant: str = ""
    tokenizer: str = ""
    prediction: str = ""
    attention: str = "auto"
    save_dtype: str = ""
    safety_checker: bool = True
    init_revision: str = ""
    init_variant: str = ""
    random_crop: bool = False
    workers: int = 0


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
    mesh = make_mesh(config.fsdp)
    _require_whole_batches(config, mesh)
    data = data_folder(config.data)
    examples = open_examples(data, config.split)
    record = _record(config, teacher, data)
    require_same(workdir, record, _MAY_CHANGE)
    pipeline = load_pipeline(teacher, config.variant, config.tokenizer, config.prediction)
    if config.sheets.steps:
        require_sampler(_sheet_sampler(config), pipeline.architectures())
    if is_cached(examples):
        crop = "random" if config.random_crop else CENTRE
        require_identity(data, latent_identity(pipeline.vae, pipeline.tokenizer, config.resolution, config.flip, crop))
    claim(workdir, record)
    _log_start(config, plan, record, len(examples), mesh)

    with (
        exact_products(config.dtype),
        jax.set_mesh(mesh),
        Checkpoints(workdir / "checkpoints", config.keep_checkpoints) as checkpoints,
    ):
        shapes = _state_shapes(config, plan, mesh)
        if checkpoints.latest() is None:
            state = _initial_state(config, plan, pipeline, shapes)
        else:
            state = checkpoints.restore(shapes)
            logging.info("continuing after step %d", int(state.step))
        done = _train(config, workdir, plan, pipeline, examples, mesh, state, checkpoints)
    if done is None:
        return None
    params = jax.tree.map(np.asarray, done.ema)
    facts = card_facts(config.teacher, plan, config.student_init, _training_facts(config, len(examples)))
    extra = {"removal_plan.json": plan.to_json()}
    return write_pipeline(workdir / "model", with_unet(pipeline, plan.student, params), save, facts, extra)


def _training_facts(config: TrainConfig, images: int) -> dict[str, object]:
    """The settings that say what was done, for the model card."""
    kept = ("steps", "batch_size", "resolution", "flip", "dtype", "seed")
    facts = {"images": images, **{key: getattr(config, key) for key in kept}}
    facts |= {f"loss.{key}": getattr(config.loss, key) for key in ("task", "output", "feature", "min_snr_gamma")}
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
) -> TrainState | None:
    """From `state` to the last update; None if interrupted before it."""
    first = int(state.step)
    if first > config.steps:
        raise InputError(f"steps: {config.steps}, but the run in {workdir} has made {first} already")
    if first == config.steps:
        logging.info("all %d steps are done", config.steps)
        return state
    dtype = compute_dtype(config.dtype)
    frozen = _place_frozen(config, pipeline, mesh, dtype)
    architectures = pipeline.architectures()
    problem = Problem(
        plan,
        architectures.vae,
        architectures.text_encoder,
        architectures.schedule,
        config.loss,
        config.attention,
    )
    optimizer = make_optimizer(config.optimizer)
    step = make_train_step(problem, optimizer, config.optimizer.ema_decay, config.seed, dtype)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    train_step = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    example = _batch_shapes(config, pipeline, mesh, is_cached(examples))
    with waiting("compiling the update"):
        train_step = train_step.lower(state, frozen, example).compile()
    draw = _sheets(config, workdir, plan, pipeline, examples, frozen) if config.sheets.steps else None
    stream = StreamConfig(
        config.resolution,
        config.batch_size,
        config.accumulation,
        config.flip,
        config.seed,
        config.random_crop,
        config.workers,
    )
    process = (jax.process_index(), jax.process_count())
    batches = training_batches(examples, pipeline.tokenizer, stream, first, process)
    schedule = LoopConfig(
        config.steps, config.log_every, config.checkpoint_every, config.sheets.every, config.batch_size
    )
    state, finished = run_loop(
        state,
        frozen,
        train_step,
        _placed(mesh, batches),
        schedule,
        workdir,
        checkpoints,
        draw,
    )
    return state if finished else None


def _sheets(
    config: TrainConfig,
    workdir: Path,
    plan: RemovalPlan,
    pipeline: Pipeline,
    examples: Sequence[Example | CachedExample],
    frozen: dict[str, Any],
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
    )
    return lambda number, state: sheets.draw(number, state.ema, frozen)


def require_settings(config: TrainConfig) -> None:
    """Holds every number to its range before anything is read; raises `InputError` with the key."""
    require_attention(config.attention, compute_dtype(config.dtype))
    whole = {"steps": 1, "batch_size": 1, "accumulation": 1, "resolution": 1, "fsdp": 1}
    whole |= {"workers": 0, "log_every": 0, "checkpoint_every": 0, "keep_checkpoints": 0}
    for key, least in whole.items():
        whole_number("config", key, getattr(config, key), least)
    whole_number("config", "seed", config.seed, 0, MOST_SEED)
    for key in ("every", "steps"):
        whole_number("config", f"sheets.{key}", getattr(config.sheets, key), 0)
    for key in ("warmup_steps", "cosine_steps"):
        whole_number("config", f"optimizer.{key}", getattr(config.optimizer, key), 0)
    _require_schedule(config)
    for key in ("task", "output", "feature", "min_snr_gamma"):
        finite_number("config", f"loss.{key}", getattr(config.loss, key), 0)
    bounds = {"learning_rate": (0, math.inf), "weight_decay": (0, math.inf), "ema_decay": (0, 1)}
    bounds |= {"beta1": (0, 1), "beta2": (0, 1), "epsilon": (1e-30, math.inf), "clip_norm": (1e-30, math.inf)}
    for key, (least, most) in bounds.items():
        finite_number("config", f"optimizer.{key}", getattr(config.optimizer, key), least, most)


def _require_schedule(config: TrainConfig) -> None:
    warmup, cosine = config.optimizer.warmup_steps, config.optimizer.cosine_steps
    if 0 < cosine < config.steps:
        raise InputError(
            f"optimizer.cosine_steps: {cosine}, fewer than steps {config.steps}: the rest would learn nothing; "
            "set both alike, or cosine_steps to 0 for a constant rate"
        )
    if 0 < cosine <= warmup:
        raise InputError(f"optimizer.warmup_steps: {warmup}, not below optimizer.cosine_steps {cosine}")


def _require_whole_batches(config: TrainConfig, mesh: Mesh) -> None:
    shards = config.accumulation * mesh.size
    if config.batch_size % shards:
        raise InputError(
            f"batch_size: {config.batch_size} doesn't divide by accumulation {config.accumulation} "
            f"x {mesh.size} device(s) = {shards}"
        )


def _record(config: TrainConfig, teacher: Path, data: Path) -> dict[str, Any]:
    """The settings that make a run, with folders spelled in one way, and what the captions were."""
    return dataclasses.asdict(config) | {"teacher": str(teacher), "data": str(data), "data_sha256": fingerprint(data)}


def _sheet_sampler(config: TrainConfig) -> SamplerConfig:
    sheets = config.sheets
    return SamplerConfig(
        sheets.steps, sheets.guidance_scale, config.resolution, seed=config.seed, attention=config.attention
    )


def _student_init(config: TrainConfig) -> StudentInit:
    return StudentInit(config.student_init, config.init_revision, config.init_variant)


def _state_shapes(config: TrainConfig, plan: RemovalPlan, mesh: Mesh) -> TrainState:
    """The state's shapes, dtypes and shardings."""
    optimizer = make_optimizer(config.optimizer)
    shapes = jax.eval_shape(lambda p: create_state(p, optimizer), parameter_shapes(plan.student))
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        parameter_shardings(mesh, shapes),
    )


def _initial_state(config: TrainConfig, plan: RemovalPlan, pipeline: Pipeline, shapes: TrainState) -> TrainState:
    params = initial_weights(plan, _student_init(config), pipeline.unet.params, config.seed)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, shapes)
    params = jax.device_put(params, shardings.params)
    optimizer = make_optimizer(config.optimizer)
    return jax.jit(lambda p: create_state(p, optimizer), out_shardings=shardings)(params)


def _place_frozen(config: TrainConfig, pipeline: Pipeline, mesh: Mesh, dtype: jnp.dtype) -> dict[str, Any]:
    """Teacher, VAE and text encoder on the devices, in the dtype of the computations."""
    frozen = {
        "teacher": pipeline.unet.params,
        "vae": pipeline.vae.params,
        "text_encoder": pipeline.text_encoder.params,
    }
    frozen = cast_frozen(frozen, dtype)
    return jax.device_put(frozen, parameter_shardings(mesh, frozen))


def _batch_shapes(config: TrainConfig, pipeline: Pipeline, mesh: Mesh, cached: bool) -> dict[str, jax.ShapeDtypeStruct]:
    lead = (config.accumulation, config.batch_size // config.accumulation)
    shapes = {"tokens": ((*lead, pipeline.text_encoder.config.max_length), jnp.int32)}
    if cached:
        side, channels = config.resolution // pipeline.vae.config.factor, pipeline.vae.config.latent_channels
        shapes["moments"] = ((*lead, 2, side, side, channels), jnp.uint16)
    else:
        shapes["images"] = ((*lead, config.resolution, config.resolution, 3), jnp.uint8)
    sharding = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(*shape, sharding=sharding) for name, shape in shapes.items()}


def _placed(mesh: Mesh, batches: Iterator[dict[str, np.ndarray]]) -> Iterator[dict[str, jax.Array]]:
    for batch in batches:
        yield place_batch(mesh, batch)


def _log_start(config: TrainConfig, plan: RemovalPlan, record: dict[str, Any], count: int, mesh: Mesh) -> None:
    for key, value in record.items():
        logging.info("config.%s = %s", key, value)
    logging.info("%d examples; %d device(s), mesh %s", count, mesh.size, dict(mesh.shape))
    for line in cost_table(plan, plan.teacher.sample_size or 64).splitlines():
        logging.info("%s", line)
    for pair in plan.features if config.loss.feature else ():
        logging.info("feature pair: teacher %s, student %s", pair.teacher, pair.student)
