"""Times a U-Net call, a guided image and a distillation update on one device, with arbitrary weights."""

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bksdm_jax.base.compiling import lower
from bksdm_jax.base.errors import InputError, whole_number
from bksdm_jax.base.precision import compute_dtype, exact_products
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.cost.counts import Cost, decoder_cost, layer_costs, text_encoder_cost, unet_cost
from bksdm_jax.cost.timing import Program, arbitrary_weights, build_program, compile_program, time_calls
from bksdm_jax.diffusion.noise import image_keys
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.models.attend import require_attention
from bksdm_jax.models.clip import clip_text_parameter_shapes
from bksdm_jax.models.norms import require_norms
from bksdm_jax.models.unet import UNet, deep_cache_calls, parameter_shapes
from bksdm_jax.models.unet_table import cuts
from bksdm_jax.models.vae import vae_parameter_shapes
from bksdm_jax.perf.config import BenchConfig, require_bench
from bksdm_jax.perf.measured import Report, heading, report, row
from bksdm_jax.pipelines.generations import TEACHERS
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pipelines.stable_diffusion import stable_diffusion
from bksdm_jax.pruning.removal import RemovalPlan, plan_removal, removed_blocks
from bksdm_jax.sampling.config import SamplerConfig
from bksdm_jax.sampling.generate import make_generate
from bksdm_jax.sampling.text_to_image import require_resolution
from bksdm_jax.tasks.distill.config import LossWeights
from bksdm_jax.tasks.distill.objective import Problem, make_objective
from bksdm_jax.training.adamw import make_optimizer
from bksdm_jax.training.config import OptimizerConfig
from bksdm_jax.training.layouts import placements
from bksdm_jax.training.sharding import make_mesh
from bksdm_jax.training.state import create_state
from bksdm_jax.training.train_step import TrainStep, make_train_step


def bench(config: BenchConfig) -> Report:
    """Reports compile time, time of a call, images per second, FLOP/s, share of the device's peak, and memory.

    Raises `InputError` for settings that can't be used.
    """
    models, plan = bench_networks(config)
    vae, text, dtype = models.configs["vae"], models.configs["text_encoder"], compute_dtype(config.dtype)
    whole_number("config", "steps", config.steps, 0)
    whole_number("config", "cut", config.cut, -1, len(cuts(plan.student)) - 1)
    networks = models.with_denoiser(plan.student)
    sampler = SamplerConfig(
        steps=max(config.steps, 1),
        guidance_scale=config.guidance_scale,
        resolution=config.resolution,
        attention=config.attention,
        norms=config.norms,
    )
    generate = make_generate(networks, sampler, dtype)
    size = config.resolution // models.factor
    with waiting("counting the work", QUIET):
        each = sum(unet_cost(plan.student, size).values(), Cost())
    params = {"unet": arbitrary_weights(parameter_shapes(plan.student), dtype)}
    generator = np.random.default_rng(0)
    latents = generator.standard_normal((config.batch_size, size, size, plan.student.in_channels), np.float32)
    context = generator.standard_normal((config.batch_size, text.max_length, text.width), np.float32)
    inputs = latents.astype(dtype), np.full(config.batch_size, 500, np.int32), {"context": context.astype(dtype)}
    unet = UNet(plan.student, dtype, config.attention, norms=config.norms)
    lines = heading(config)
    with exact_products(config.dtype):
        program = compile_program("U-Net calls", unet.apply, {"params": params["unet"]}, *inputs)
        timing = time_calls(program, config.repeats)
        lines.append(row("U-Net call", timing, config, each))
        if config.cut >= 0:
            lines.append(_shallow_row(config, unet.clone(cut=config.cut), params["unet"], inputs))
        if config.steps:
            params["vae"] = arbitrary_weights(vae_parameter_shapes(vae), dtype)
            params["text_encoder"] = arbitrary_weights(clip_text_parameter_shapes(text), dtype)
            captions = {"tokens": np.zeros((config.batch_size, text.max_length), np.int32)}
            inputs = captions, {"tokens": captions["tokens"][:1]}, image_keys(0, np.arange(config.batch_size))
            program = compile_program("images", generate, params, *inputs)
            timing = time_calls(program, config.repeats)
            calls = (config.steps + 1) * (2 if config.guidance_scale > 1 else 1)
            cost = text_encoder_cost(text) + each.times(calls) + decoder_cost(vae, size)
            lines.append(row(f"image, {config.steps} steps", timing, config, cost))
        return report(lines, program, timing, config)


def _shallow_row(config: BenchConfig, unet: UNet, params: Any, inputs: tuple[Any, ...]) -> str:
    full, shallow = deep_cache_calls(unet)
    shape = jax.eval_shape(full, params, *inputs, None)[1]
    deep = np.random.default_rng(1).standard_normal(shape.shape, np.float32).astype(shape.dtype)
    single = jax.tree.map(lambda leaf: leaf[:1], (*inputs, deep))
    cost = sum(layer_costs(unet, *single, method="shallow").values(), Cost())
    timing = time_calls(compile_program("shallow calls", shallow, params, *inputs, deep), config.repeats)
    return row(f"shallow call, cut {unet.cut}", timing, config, cost)


def bench_update(config: BenchConfig) -> Report:
    """Reports as `bench`, for a distillation update from cached latents.

    The text encoder has no layers, only its embeddings. FLOP/s count the teacher's forward pass and the student's
    forward and backward pass (twice the forward).
    """
    models, plan = bench_networks(config)
    dtype = compute_dtype(config.dtype)
    size = config.resolution // models.factor
    configs = dict(models.configs)
    configs["text_encoder"] = dataclasses.replace(configs["text_encoder"], layers=0)
    how = (config.attention, config.remat, config.norms)
    problem = Problem(plan, Architectures(configs, models.schedule), LossWeights(), *how)
    mesh, optimizer = make_mesh(1, jax.devices()[:1]), OptimizerConfig()
    with waiting("preparing the update", QUIET):
        objective = make_objective(problem, config.resolution, (1, config.batch_size), dtype, cached=True)
        step = make_train_step(objective, optimizer, 0, mesh, config.conv_layout)
    with waiting("counting the work", QUIET):
        teacher, student = (sum(unet_cost(unet, size).values(), Cost()) for unet in (plan.teacher, plan.student))
    return time_update(compile_step(step, optimizer, mesh, config), config, teacher + student.times(3))


def time_update(program: Program, config: BenchConfig, each: Cost, notes: Sequence[str] = ()) -> Report:
    """Times the updates of `compile_step`; `each` is the cost of an image, and `notes` follow the table."""
    timing = time_calls(program, config.repeats)
    return report([*heading(config), row("update", timing, config, each), *notes], program, timing, config)


def compile_step(step: TrainStep, optimizer: OptimizerConfig, mesh: Mesh, config: BenchConfig) -> Program:
    """Compiles updates from cached latents, with arbitrary weights; `optimizer` and `mesh` are those of `step`."""
    params = arbitrary_weights(step.state.params, np.dtype(np.float32))
    frozen = jax.device_put(arbitrary_weights(step.frozen, compute_dtype(config.dtype)), placements(step.frozen))
    generator = np.random.default_rng(0)
    moments = generator.standard_normal(step.batch["moments"].shape, np.float32).astype(jnp.bfloat16)
    captions = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), step.batch["captions"])
    batch = jax.device_put({"moments": moments.view(np.uint16), "captions": captions})
    initial = create_state(params, make_optimizer(optimizer), optimizer.ema_decay > 0)
    state = jax.device_put(initial, placements(step.state))

    def build() -> tuple[Callable[[], Any], Callable[[], str]]:
        compiled = lower(step.update, state, frozen, batch).compile()

        def call() -> Any:
            nonlocal state
            state, metrics = compiled(state, frozen, batch)  # donates the old state's memory
            return metrics

        return call, compiled.as_text

    with exact_products(config.dtype), jax.set_mesh(mesh):
        return build_program("updates", build)


@waiting("preparing the networks", QUIET)
def bench_networks(config: BenchConfig) -> tuple[Architectures, RemovalPlan]:
    """The networks of a generation with the config's widths, and the student; checks the settings."""
    require_bench(config)
    require_attention(config.attention, compute_dtype(config.dtype))
    require_norms(config.norms)
    models = stable_diffusion(config.generation)
    if config.widths:
        stages = len(models.denoiser.down)
        if len(config.widths) != stages or any(width not in range(32, 2**14, 32) for width in config.widths):
            raise InputError(f"config: widths is {config.widths}; expected {stages} multiples of 32")
        facts = TEACHERS[config.generation] | {"block_out_channels": list(config.widths)}
        models = models.with_denoiser(unet_from_diffusers(facts))
    require_resolution(config.resolution, models)
    return models, plan_removal(models.denoiser, removed_blocks(config.student))
