"""Memory, time and cost of a run, from its update compiled ahead of time for its devices."""

import dataclasses
import math
from collections.abc import Callable, Iterator

from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.cost.chips import peak_flops
from bksdm_jax.models.attention import require_attention
from bksdm_jax.perf.compiled_step import Compiled, compile_update
from bksdm_jax.perf.topology import Target, target_of
from bksdm_jax.perf.work import Work, count_work
from bksdm_jax.pipelines.generations import GENERATIONS
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pipelines.stable_diffusion import stable_diffusion
from bksdm_jax.pruning.block_scores import removed_from
from bksdm_jax.pruning.removal import RemovalPlan, plan_removal
from bksdm_jax.sampling.text_to_image import require_resolution
from bksdm_jax.tasks.distill.config import DistillConfig, require_generation, require_plan
from bksdm_jax.tasks.distill.features import weighted_pairs
from bksdm_jax.training.config import require_whole_batches
from bksdm_jax.training.sharding import make_mesh

_LIKELY = 0.4  # of the peak; an assumption, not measured


def plan_run(config: DistillConfig) -> Iterator[str]:
    """Checks the settings, and returns the report's parts, each of some lines, as an iterator that compiles for them.

    Raises:
        InputError: a setting that can't be used, or devices that can't be compiled for; nothing is compiled then.
    """
    require_plan(config)
    require_attention(config.attention, compute_dtype(config.dtype))
    networks = _networks(config)
    require_resolution(config.resolution, networks)
    plan = plan_removal(networks.denoiser, removed_from(networks.denoiser, config.student, config.block_scores))
    weighted_pairs(plan, config.loss.feature_source, config.loss.feature_scales)  # raises for unknown names
    target = target_of(config.topology)
    devices = len(target.devices)
    make_mesh(config.fsdp, list(target.devices))  # raises if fsdp doesn't divide them
    require_whole_batches(config, devices)
    return _parts(config, networks, plan, target)


def _parts(config: DistillConfig, networks: Architectures, plan: RemovalPlan, target: Target) -> Iterator[str]:
    devices = len(target.devices)
    yield "\n".join([*_about(config, target), ""])
    with waiting("counting the work", QUIET):
        work = count_work(config, plan, networks)

    def compile_with(images: int) -> Compiled:
        """`images` of a micro-batch on each device."""
        sized = dataclasses.replace(config, batch_size=images * config.accumulation * devices)
        return compile_update(sized, plan, networks, target.devices)

    compiled = compile_with(config.batch_size // config.accumulation // devices)
    lines = [*memory_lines(compiled, target), "", *work_lines(config, work, compiled, target), "", *_traffic(compiled)]
    yield "\n".join(lines)
    if target.memory and config.plan.largest:
        yield ""
        yield from largest_lines(config, compiled, target, compile_with)


def _networks(config: DistillConfig) -> Architectures:
    if config.teacher:
        networks = find_model(config.source(config.teacher), networks=()).architectures
        require_generation(config, networks)
        return networks
    return stable_diffusion(GENERATIONS[config.generation][0])


def _about(config: DistillConfig, target: Target) -> list[str]:
    devices = len(target.devices)
    images = config.batch_size // config.accumulation // devices
    name = target.chip.name if target.chip else target.devices[0].device_kind
    where = f" ({config.topology})" if config.topology else ""
    return [
        f"{config.student} of {config.teacher or f'Stable Diffusion {config.generation}'}, "
        f"{config.resolution} px from {'cached latents' if config.plan.cached else 'images'}, {config.dtype}, "
        f"attention {config.attention}, remat {config.remat}",
        f"{devices} x {name}{where}, data {devices // config.fsdp} x fsdp {config.fsdp}",
        f"{config.batch_size} images per update: {config.accumulation} micro-batch(es), {images} on each of {devices} "
        "device(s)",
    ]


def memory_lines(compiled: Compiled, target: Target) -> list[str]:
    """A device's memory by part, and whether it suffices."""
    rows = dict(compiled.arguments)
    if compiled.temporaries is not None:
        rows |= {"temporaries": compiled.temporaries, "total": compiled.needed}
    lines = ["memory of one device, GiB", *(f"  {name:20} {size / 2**30:8.2f}" for name, size in rows.items())]
    if compiled.temporaries is None:
        return [*lines, f"fits: no ({compiled.refused})"]
    if not target.memory:
        return [*lines, "fits: unknown, as the device's memory is unknown"]
    free = target.memory - compiled.needed
    answer, difference = ("yes", "are left") if free >= 0 else ("no", "are missing")
    total = f" of {target.chip.memory / 2**30:.1f}" if target.chip else ""
    usable = f"{target.memory / 2**30:.1f}{total} GiB can be used"
    return [*lines, f"fits: {answer}; {usable}, {abs(free) / 2**30:.2f} {difference}"]


def work_lines(config: DistillConfig, work: Work, compiled: Compiled, target: Target) -> list[str]:
    """FLOPs and bytes, and time and cost by a roofline estimate from the chips' peaks."""
    devices, chip = len(target.devices), target.chip
    passes = "teacher forward, " if config.loss.distils else ""
    passes += f"student {'twice ' if config.remat == 'full' else ''}forward and backward"
    share = config.batch_size / devices
    each = work.image + work.update / config.batch_size
    unit, scale = ("TFLOP", 1e12) if each >= 1e11 else ("GFLOP", 1e9)
    lines = [f"{each / scale:.3f} {unit} per image; {passes} {work.passes / scale:.3f} ({each / work.passes - 1:+.1%})"]
    if compiled.temporaries is None:
        return lines
    lines.append(
        f"{compiled.bytes_accessed / share / 1e9:.2f} GB accessed per image, "
        f"{compiled.temporaries / compiled.images / 2**30:.2f} GiB of temporaries per image of a micro-batch"
    )
    peak = peak_flops(chip, config.dtype)
    if not peak:
        name = chip.name if chip else target.devices[0].device_kind
        return [*lines, f"time and cost: unknown, as the peak of {name} in {config.dtype} is unknown"]
    flops = share * work.image + work.update / config.fsdp
    times = {"compute": flops / peak, "memory": compiled.bytes_accessed / chip.bandwidth}
    if chip.links:
        times["communication"] = sum(traffic.sent for traffic in compiled.traffic.values()) / chip.links
    bound = max(times, key=lambda name: times[name])
    step = times[bound]
    days = config.steps * step / 86_400
    likely = max(days, config.steps * flops / (peak * _LIKELY) / 86_400)
    lines += [
        "one update at the chips' peaks: " + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in times.items()),
        f"roofline: {step:.3f} s, {bound}-bound, {config.batch_size / step:.1f} images/s",
        f"{config.steps:,} updates: {days:.2f} days by the roofline, {likely:.2f} if compute is at {_LIKELY:.0%} of "
        "peak",
    ]
    if config.plan.price:
        least, more = (24 * amount * devices * config.plan.price for amount in (days, likely))
        lines.append(f"cost at {config.plan.price:g} per chip and hour: {least:,.0f} and {more:,.0f}")
    return lines


def _traffic(compiled: Compiled) -> list[str]:
    if not compiled.traffic:
        return ["no collectives"]
    lines = ["collectives of one update, per device: count, bytes of results, bytes sent in rings"]
    for kind, traffic in compiled.traffic.items():
        size, sent = traffic.bytes / 2**30, traffic.sent / 2**30
        lines.append(f"  {kind:20} {traffic.count:6} x, {size:8.3f} GiB, {sent:8.3f} GiB")
    return lines


def largest_lines(
    config: DistillConfig, compiled: Compiled, target: Target, compile_with: Callable[[int], Compiled]
) -> Iterator[str]:
    """Lines on the largest micro-batch that fits the target's (known) memory, extrapolated linearly from that of two.

    `compile_with` compiles the run's update for another number of images per device.
    """
    refused = None
    while compiled.temporaries is None:
        refused = compiled.images
        if refused == 1:
            yield "largest micro-batch: not even one image per device fits"
            return
        compiled = compile_with(refused // 2)
    other = compiled.images * 2 if compiled.images == 1 else compiled.images // 2
    second = compile_with(other) if other != refused else None
    if second is None or second.temporaries is None:
        yield f"largest micro-batch: {compiled.images} image(s) per device; {other} don't fit"
        return
    slope = (second.needed - compiled.needed) / (second.images - compiled.images)
    images = compiled.images
    if slope > 0:
        images = max(images + math.floor((target.memory - compiled.needed) / slope), 0)
    images = min(images, refused - 1) if refused else images
    yield (
        f"each image of a micro-batch takes another {slope / 2**30:.2f} GiB, so {images} per device fit: "
        f"{images * len(target.devices)} per micro-batch, {images * len(target.devices) * config.accumulation} per "
        "update"
    )
    if config.plan.confirm and images:
        third = compile_with(images)
        found = "rejected by the compiler" if third.temporaries is None else f"{third.needed / 2**30:.2f} GiB"
        answer = "yes" if third.needed <= target.memory else "no"
        yield f"compiled with {images} per device: {found}; fits: {answer}"
