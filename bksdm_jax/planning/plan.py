"""A run's update, compiled ahead of time for the devices that it is meant for, and what that says of the run."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from bksdm_jax.analysis.chips import Chip
from bksdm_jax.analysis.pipeline_cost import stable_diffusion
from bksdm_jax.errors import finite_number, known_name
from bksdm_jax.models.presets import GENERATIONS
from bksdm_jax.planning.topology import devices_of
from bksdm_jax.planning.update import Compiled, compile_update
from bksdm_jax.planning.work import Work, count_work
from bksdm_jax.pruning.plan import RemovalPlan, plan_removal, removed_blocks
from bksdm_jax.training.config import TrainConfig, require_generation, require_settings, require_whole_batches
from bksdm_jax.training.features import weighted_pairs
from bksdm_jax.training.sharding import make_mesh
from bksdm_jax.weights.load import load_architectures
from bksdm_jax.weights.pipeline import Architectures

_LIKELY = 0.4  # of the peak: an assumption, which nothing here has measured
_RESERVED = 0.03  # of a device's memory: the runtime's, and what sheets and transfers take


def plan_run(config: TrainConfig) -> str:
    """Compiles the update of a run and returns what to print.

    Raises:
        InputError: a setting that can't be used, or devices that can't be compiled for; nothing is compiled then.
    """
    require_settings(config)
    finite_number("config", "plan.price", config.plan.price, 0)
    networks = _networks(config)
    plan = plan_removal(networks.unet, removed_blocks(config.student))
    weighted_pairs(plan, config.loss.feature_source, config.loss.feature_scales)  # raises, where a name is unknown
    devices, chip = devices_of(config.topology)
    make_mesh(config.fsdp, list(devices))  # raises, where they don't divide
    require_whole_batches(config, len(devices))
    work = count_work(config, plan, networks)
    compiled = compile_update(config, plan, networks, devices)
    lines = [*_about(config, plan, len(devices), chip), "", *_memory(compiled, chip), ""]
    lines += [*_work(config, work, compiled, len(devices), chip), ""]
    lines += _traffic(compiled)
    if chip and config.plan.largest:
        lines += ["", *_largest(config, plan, networks, devices, chip, compiled)]
    return "\n".join(lines)


def _networks(config: TrainConfig) -> Architectures:
    if config.teacher:
        networks = load_architectures(config.teacher, config.prediction)
        require_generation(config, networks)
        return networks
    known_name("config", "generation", config.generation, GENERATIONS)
    return stable_diffusion(GENERATIONS[config.generation][0])


def _about(config: TrainConfig, plan: RemovalPlan, devices: int, chip: Chip | None) -> list[str]:
    images = config.batch_size // config.accumulation // devices
    name = chip.name if chip else jax.devices()[0].device_kind
    where = f" ({config.topology})" if config.topology else ""
    return [
        f"{config.student} of {config.teacher or f'Stable Diffusion {config.generation}'}, "
        f"{config.resolution} px, {config.dtype}, attention {config.attention}, remat {config.remat}",
        f"{devices} x {name}{where}, data {devices // config.fsdp} x fsdp {config.fsdp}",
        f"{config.batch_size} images an update: {config.accumulation} micro-batch(es), {devices} device(s) of {images}",
    ]


def _memory(compiled: Compiled, chip: Chip | None) -> list[str]:
    lines = ["memory of one device, GiB"]
    rows = dict(compiled.arguments)
    if compiled.temporaries is not None:
        rows["temporaries"] = compiled.temporaries
    lines += [f"  {name:20} {size / 2**30:8.2f}" for name, size in rows.items()]
    if compiled.temporaries is None:
        return [*lines, f"fits: no ({compiled.refused})"]
    lines.append(f"  {'in all':20} {compiled.needed / 2**30:8.2f}")
    if chip is None:
        return [*lines, "fits: not known, as the device's memory isn't"]
    free = chip.memory * (1 - _RESERVED) - compiled.needed
    answer = "yes" if free >= 0 else "no"
    return [
        *lines,
        f"fits: {answer}, of {chip.memory / 2**30:.1f} GiB, {_RESERVED:.0%} of them the runtime's, "
        f"{abs(free) / 2**30:.2f} {'are left' if free >= 0 else 'are missing'}",
    ]


def _work(config: TrainConfig, work: Work, compiled: Compiled, devices: int, chip: Chip | None) -> list[str]:
    share = config.batch_size / devices
    lines = [
        f"{work.update / 1e12:.3f} TFLOP an image; teacher forward and student forward and backward alone "
        f"{work.passes / 1e12:.3f} ({work.update / work.passes - 1:+.1%})",
    ]
    if compiled.temporaries is not None:
        lines.append(
            f"{compiled.bytes_accessed / share / 1e9:.2f} GB accessed an image, "
            f"{compiled.temporaries / compiled.images / 2**30:.2f} GiB of temporaries for each in a micro-batch"
        )
    if chip is None or compiled.temporaries is None:
        return lines
    sent = sum(traffic.bytes for traffic in compiled.traffic.values())
    times = {"products": share * work.update / chip.flops, "memory": compiled.bytes_accessed / chip.bandwidth}
    if chip.links:
        times["links"] = 2 * sent / chip.links  # a ring sends what it reduces twice
    bound = max(times, key=lambda name: times[name])
    step = times[bound]
    days = config.steps * step / 86_400
    likely = max(days, config.steps * config.batch_size * work.update / (devices * chip.flops * _LIKELY) / 86_400)
    lines += [
        "an update at the chips' peaks: " + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in times.items()),
        f"so at least {step:.3f} s, bound by {bound}: at most {config.batch_size / step:.1f} images/s",
        f"{config.steps:,} updates: {days:.2f} days at the least, {likely:.2f} with products at {_LIKELY:.0%} of peak",
    ]
    if config.plan.price:
        least, more = (24 * amount * devices * config.plan.price for amount in (days, likely))
        lines.append(f"money at {config.plan.price:g} a chip and hour: {least:,.0f} and {more:,.0f}")
    return lines


def _traffic(compiled: Compiled) -> list[str]:
    if not compiled.traffic:
        return ["no collectives"]
    lines = ["collectives of an update, on one device"]
    for kind, traffic in compiled.traffic.items():
        lines.append(f"  {kind:20} {traffic.count:6} x, {traffic.bytes / 2**30:8.3f} GiB")
    return lines


def _largest(
    config: TrainConfig,
    plan: RemovalPlan,
    networks: Architectures,
    devices: Sequence[Any],
    chip: Chip,
    compiled: Compiled,
) -> list[str]:
    """By a line through what two micro-batches need."""

    def of(images: int) -> TrainConfig:
        return dataclasses.replace(config, batch_size=images * config.accumulation * len(devices))

    other = compiled.images * 2 if compiled.images == 1 or compiled.temporaries is None else compiled.images // 2
    if compiled.temporaries is None:
        return ["largest batch: not known; give a smaller one"]
    second = compile_update(of(other), plan, networks, devices)
    if second.temporaries is None:
        return [f"largest micro-batch: {compiled.images} image(s) a device; {other} don't fit"]
    slope = (second.needed - compiled.needed) / (second.images - compiled.images)
    room = chip.memory * (1 - _RESERVED) - compiled.needed
    images = max(compiled.images + math.floor(room / slope), 0) if slope > 0 else compiled.images
    lines = [
        f"each image of a micro-batch takes {slope / 2**30:.2f} GiB more, so that {images} a device fit: "
        f"{images * len(devices)} at once, updates of {images * len(devices) * config.accumulation}"
    ]
    if config.plan.confirm and images:
        third = compile_update(of(images), plan, networks, devices)
        fits = third.needed <= chip.memory * (1 - _RESERVED)
        said = "refused by the compiler" if third.temporaries is None else f"{third.needed / 2**30:.2f} GiB"
        lines.append(f"compiled with {images} a device: {said}; fits: {'yes' if fits else 'no'}")
    return lines
