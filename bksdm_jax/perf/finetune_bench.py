"""Times a fine-tuning update on one device, with arbitrary weights, and tells what memory it takes."""

import dataclasses

import jax

from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.cost.counts import Cost, text_encoder_cost, unet_cost
from bksdm_jax.perf.bench import bench_networks, compile_step, time_update
from bksdm_jax.perf.compiled_step import argument_bytes, planned_step
from bksdm_jax.perf.config import BenchConfig
from bksdm_jax.perf.finetuning import finetuning
from bksdm_jax.perf.measured import Report
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.tasks.finetune.config import AdapterConfig, FinetuneConfig
from bksdm_jax.tasks.finetune.task import unet_passes
from bksdm_jax.tasks.finetune.trained import what_is_trained
from bksdm_jax.training.config import OptimizerConfig
from bksdm_jax.training.sharding import make_mesh


def bench_finetune(config: BenchConfig) -> Report:
    """Reports as `bench`, for an update of U-Net and text encoder from cached latents, and its memory.

    FLOP/s count the forward and backward pass of both, of adapters without the gradients of the weights. Raises
    `InputError` for settings that can't be used.
    """
    models, plan = bench_networks(config)
    networks = models.with_denoiser(plan.student)
    if config.widths:
        text = dataclasses.replace(networks.configs["text_encoder"], layers=1)
        networks = dataclasses.replace(networks, configs=dict(networks.configs) | {"text_encoder": text})
    settings, mesh = _settings(config), make_mesh(1, jax.devices()[:1])
    with waiting("preparing the update", QUIET):
        run = finetuning(settings, what_is_trained(settings, networks))
        step = planned_step(run, mesh)
    with waiting("counting the work", QUIET):
        each = _forward(networks, config.resolution).times(unet_passes(settings))
    memory = ", ".join(f"{name} {size / 2**20:,.1f}" for name, size in argument_bytes(run, step).items())
    program = compile_step(step, settings.optimizer, mesh, config)
    return time_update(program, config, each, (*run.notes, f"memory, MiB: {memory}"))


def _settings(config: BenchConfig) -> FinetuneConfig:
    """Those of a run without a moving average, as the configs of `launch.train` have it."""
    same = ("batch_size", "resolution", "dtype", "attention", "remat", "norms", "conv_layout")
    return FinetuneConfig(
        model="",
        data="",
        adapter=AdapterConfig(rank=config.rank),
        optimizer=OptimizerConfig(ema_decay=0.0),
        **{key: getattr(config, key) for key in same},
    )


def _forward(networks: Architectures, resolution: int) -> Cost:
    """Of both networks, for one image."""
    stages = unet_cost(networks.denoiser, resolution // networks.factor)
    return sum(stages.values(), text_encoder_cost(networks.configs["text_encoder"]))
