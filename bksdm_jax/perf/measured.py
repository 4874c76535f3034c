"""What a benchmark of compiled programs reports: a table, and the rate and kernels of one of them."""

import dataclasses

import jax

from bksdm_jax.cost.chips import chip_of, peak_flops
from bksdm_jax.cost.counts import Cost
from bksdm_jax.cost.timing import Program, Timing
from bksdm_jax.perf.config import BenchConfig, make_trace_folder
from bksdm_jax.perf.profile import profile

_CHOICES = ("attention", "remat", "norms", "conv_layout")  # told if they aren't the default
_COLUMNS = "{:<21}{:>11}{:>13}{:>13}{:>11}{:>10}{:>10}{:>13}"


@dataclasses.dataclass(frozen=True)
class Report:
    """A benchmark's lines, and the images per second of its program: pipelined, and one call at a time."""

    lines: tuple[str, ...]
    images_per_s: float
    one_by_one: float

    def __str__(self) -> str:
        return "\n".join(self.lines)


def heading(config: BenchConfig) -> list[str]:
    """What is timed, and the columns of `row`."""
    widths = f", widths {'-'.join(map(str, config.widths))}" if config.widths else ""
    chosen = [key for key in _CHOICES if getattr(config, key) != getattr(BenchConfig, key)]
    others = "".join(f", {key} {getattr(config, key)}" for key in chosen)
    columns = ("", "compiling", "single call", "pipelined", "images/s", "TFLOP/s", "of peak", "peak memory")
    return [
        f"{config.student} of SD {config.generation}{widths}, batch {config.batch_size}, {config.dtype}, "
        f"{config.resolution}x{config.resolution} pixels{others}, on {jax.devices()[0].device_kind}",
        _COLUMNS.format(*columns),
    ]


def row(name: str, timing: Timing, config: BenchConfig, each: Cost) -> str:
    """A line of the table; `each` is the cost of an image. Rates are those of pipelined calls."""
    rate = 2 * each.full_macs * config.batch_size / timing.pipelined
    peak = peak_flops(chip_of(jax.devices()[0].device_kind), config.dtype)
    cells = (
        f"{timing.compiling:.1f} s",
        f"{timing.median * 1e3:,.1f} ms",
        f"{timing.pipelined * 1e3:,.1f} ms",
        f"{config.batch_size / timing.pipelined:.4g}",
        f"{rate / 1e12:.3g}",
        f"{rate / peak:.1%}" if peak else "-",
        f"{timing.memory / 2**30:.2f} GiB" if timing.memory else "-",
    )
    return _COLUMNS.format(name, *cells)


def report(lines: list[str], program: Program, timing: Timing, config: BenchConfig) -> Report:
    """The report on `program`, whose row is among the lines; with `config.profile`, traces it too."""
    if config.profile:
        folder = make_trace_folder(config.profile)
        lines = [*lines, *profile(program.name, program.call, program.text(), folder)]
    return Report(tuple(lines), config.batch_size / timing.pipelined, config.batch_size / timing.median)
