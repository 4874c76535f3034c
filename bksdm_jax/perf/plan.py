"""Memory, time and cost of a run, from its update compiled ahead of time for its devices."""

import math
from collections.abc import Callable, Iterator, Mapping

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.cost.chips import peak_flops
from bksdm_jax.perf.compiled_step import Compiled, compile_update
from bksdm_jax.perf.distillation import open_distillation
from bksdm_jax.perf.finetuning import open_finetuning
from bksdm_jax.perf.planned import PlannedRun, Settings
from bksdm_jax.perf.topology import Target, target_of
from bksdm_jax.perf.traffic import Moved, total
from bksdm_jax.perf.work import Work, count_work
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.training.config import require_whole_batches
from bksdm_jax.training.sharding import make_mesh

_LIKELY = 0.4  # of the peak; an assumption, not measured
_HOUR = 3600
_PERIODS = {"days": 24 * _HOUR, "minutes": 60}  # seconds
_UNITS = {"GiB": 2**30, "MiB": 2**20}


def plan_run(config: Settings) -> Iterator[str]:
    """Checks the settings, and returns the report's parts, each of some lines, as an iterator that compiles for them.

    Raises:
        InputError: a setting that can't be used, or devices that can't be compiled for; nothing is compiled then.
    """
    if config.topology and config.norms == "pallas":
        raise InputError(f"norms: pallas has kernels for NVIDIA GPUs only, not for {config.topology}; use xla")
    if config.topology and config.conv_layout == "ohwi":
        raise InputError(f"conv_layout: ohwi is cuDNN's, for NVIDIA GPUs, not for {config.topology}; use hwio")
    run = open_distillation(config) if isinstance(config, DistillConfig) else open_finetuning(config)
    target = target_of(config.topology)
    devices = len(target.devices)
    make_mesh(config.fsdp, list(target.devices))  # raises if fsdp doesn't divide them
    require_whole_batches(config, devices)
    return _parts(run, target)


def _parts(run: PlannedRun, target: Target) -> Iterator[str]:
    config, devices = run.config, len(target.devices)
    yield "\n".join([*_about(run, target), ""])
    with waiting("counting the work", QUIET):
        work = count_work(run)

    def compile_with(images: int) -> Compiled:
        """`images` of a micro-batch on each device."""
        return compile_update(run.resized(batch_size=images * config.accumulation * devices), target.devices)

    compiled = compile_with(config.batch_size // config.accumulation // devices)
    memory, amounts = memory_lines(compiled, target, run.memory), work_lines(run, work, compiled, target)
    moved = traffic_lines(compiled.moved, config.batch_size / devices, run.unit)
    yield "\n".join([*memory, "", *amounts, "", *moved, "", *_traffic(compiled)])
    if target.memory and config.plan.largest:
        yield ""
        yield from largest_lines(run, compiled, target, compile_with)


def _about(run: PlannedRun, target: Target) -> list[str]:
    config, devices = run.config, len(target.devices)
    images = config.batch_size // config.accumulation // devices
    name = target.chip.name if target.chip else target.devices[0].device_kind
    where = f" ({config.topology})" if config.topology else ""
    return [
        f"{run.name}, {config.resolution} px from {'cached latents' if run.cached else 'images'}, {config.dtype}, "
        f"attention {config.attention}, remat {config.remat}, norms {config.norms}, conv_layout {config.conv_layout}",
        *run.notes,
        f"{devices} x {name}{where}, data {devices // config.fsdp} x fsdp {config.fsdp}",
        f"{config.batch_size} {run.unit}s per update: {config.accumulation} micro-batch(es), {images} on each of "
        f"{devices} device(s)",
    ]


def memory_lines(compiled: Compiled, target: Target, unit: str = "GiB") -> list[str]:
    """A device's memory by part, in GiB or MiB, and whether it suffices."""
    rows = dict(compiled.arguments)
    if compiled.temporaries is not None:
        rows |= {"temporaries": compiled.temporaries, "total": compiled.needed}
    scale = _UNITS[unit]
    lines = [f"memory of one device, {unit}", *(f"  {name:20} {size / scale:8.2f}" for name, size in rows.items())]
    if compiled.temporaries is None:
        return [*lines, f"fits: no ({compiled.refused})"]
    if not target.memory:
        return [*lines, "fits: unknown, as the device's memory is unknown"]
    free = target.memory - compiled.needed
    answer, difference = ("yes", "are left") if free >= 0 else ("no", "are missing")
    total = f" of {target.chip.memory / 2**30:.1f}" if target.chip else ""
    usable = f"{target.memory / 2**30:.1f}{total} GiB can be used"
    return [*lines, f"fits: {answer}; {usable}, {abs(free) / 2**30:.2f} {difference}"]


def work_lines(run: PlannedRun, work: Work, compiled: Compiled, target: Target) -> list[str]:
    """FLOPs and bytes, and time and cost by a roofline estimate from the chips' peaks."""
    config, devices, chip = run.config, len(target.devices), target.chip
    share = config.batch_size / devices
    each = work.image + work.update / config.batch_size
    unit, scale = ("TFLOP", 1e12) if each >= 1e11 else ("GFLOP", 1e9)
    lines = [
        f"{each / scale:.3f} {unit} per {run.unit}; {run.passes} {work.passes / scale:.3f} "
        f"({each / work.passes - 1:+.1%})"
    ]
    if compiled.temporaries is None:
        return lines
    moved = total(compiled.moved).bytes
    lines.append(
        f"{moved / share / 1e9:.2f} GB of a device's memory read and written per {run.unit}, "
        f"{compiled.temporaries / compiled.images / 2**30:.2f} GiB of temporaries per {run.unit} of a micro-batch"
    )
    peak = peak_flops(chip, config.dtype)
    if not peak:
        name = chip.name if chip else target.devices[0].device_kind
        return [*lines, f"time and cost: unknown, as the peak of {name} in {config.dtype} is unknown"]
    flops = share * work.image + work.update / config.fsdp
    times = {"compute": flops / peak, "memory": moved / chip.bandwidth}
    if chip.links:
        times["communication"] = sum(traffic.sent for traffic in compiled.traffic.values()) / chip.links
    bound = max(times, key=lambda name: times[name])
    step = times[bound]
    lines += [
        "one update at the chips' peaks: " + ", ".join(f"{name} {seconds:.3f} s" for name, seconds in times.items()),
        f"roofline: {step:.3f} s, {bound}-bound, {config.batch_size / step:.1f} {run.unit}s/s",
    ]
    whole = config.steps * step
    return [*lines, *_totals(run, devices, whole, max(whole, config.steps * flops / (peak * _LIKELY)))]


def traffic_lines(moved: Mapping[str, Moved], share: float, unit: str) -> list[str]:
    """A table of memory traffic by kind of kernel, of an update of `share` images on a device."""
    lines = [f"{'memory traffic':16} {'kernels':>8} {f'GB per {unit}':>14} {'of it padding':>14}"]
    for kind, each in moved.items():
        size, padding = (value / share / 1e9 for value in (each.bytes, each.padding))
        lines.append(f"  {kind:14} {each.kernels:8,} {size:14.3f} {padding:14.3f}")
    return lines


def _totals(run: PlannedRun, devices: int, least: float, likely: float) -> list[str]:
    """Time and cost of all updates, which take so many seconds."""
    config, seconds = run.config, _PERIODS[run.period]
    lines = [
        f"{config.steps:,} updates: {least / seconds:.2f} {run.period} by the roofline, {likely / seconds:.2f} if "
        f"compute is at {_LIKELY:.0%} of peak"
    ]
    if config.plan.price:
        costs = [time / _HOUR * devices * config.plan.price for time in (least, likely)]
        digits = 0 if run.period == "days" else 2
        shown = " and ".join(f"{cost:,.{digits}f}" for cost in costs)
        lines.append(f"cost at {config.plan.price:g} per chip and hour: {shown}")
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
    run: PlannedRun, compiled: Compiled, target: Target, compile_with: Callable[[int], Compiled]
) -> Iterator[str]:
    """Lines on the largest micro-batch that fits the target's (known) memory, extrapolated linearly from that of two.

    `compile_with` compiles the run's update for another number of images per device.
    """
    config, refused = run.config, None
    while compiled.temporaries is None:
        refused = compiled.images
        if refused == 1:
            yield f"largest micro-batch: not even one {run.unit} per device fits"
            return
        compiled = compile_with(refused // 2)
    other = compiled.images * 2 if compiled.images == 1 else compiled.images // 2
    second = compile_with(other) if other != refused else None
    if second is None or second.temporaries is None:
        yield f"largest micro-batch: {compiled.images} {run.unit}(s) per device; {other} don't fit"
        return
    slope = (second.needed - compiled.needed) / (second.images - compiled.images)
    images = compiled.images
    if slope > 0:
        images = max(images + math.floor((target.memory - compiled.needed) / slope), 0)
    images = min(images, refused - 1) if refused else images
    yield (
        f"each {run.unit} of a micro-batch takes another {slope / 2**30:.2f} GiB, so {images} per device fit: "
        f"{images * len(target.devices)} per micro-batch, {images * len(target.devices) * config.accumulation} per "
        "update"
    )
    if config.plan.confirm and images:
        third = compile_with(images)
        found = "rejected by the compiler" if third.temporaries is None else f"{third.needed / 2**30:.2f} GiB"
        answer = "yes" if third.needed <= target.memory else "no"
        yield f"compiled with {images} per device: {found}; fits: {answer}"
