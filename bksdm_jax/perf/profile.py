"""Where a program's time goes: its kernels by kind, from a trace of a few calls.

The trace is JAX's own; only events of the device are counted. On a GPU these are the kernels of all streams, on a TPU
the line of its operations. On a CPU they are the operations that XLA's runtime runs, each once: the threads that help
with one aren't traced, and loops and branches are left out for what runs inside them. Kernels that run side by side,
as on a CPU's threads or a GPU's streams, count in full each, so that their sum may exceed the time of a call.
"""

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import jax

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.perf.kernels import KINDS, KernelKinds

CALLS = 3
"""Calls that are traced."""
_ACCELERATORS = ("/device:GPU:", "/device:TPU:")
_HOST = "/host:CPU"
_LINES = ("Stream #", "XLA Ops")  # of a GPU's and a TPU's plane; its other lines repeat them
_ROW = "{:<21}{:>11}{:>16}{:>9}"


class Kernel(NamedTuple):
    """One run of a kernel: its kind, and when it began and ended, in nanoseconds."""

    kind: str
    start: float
    end: float


@dataclasses.dataclass(frozen=True)
class Kernels:
    """What ran in a trace.

    Attributes:
        seconds: kind -> in kernels; those that ran side by side count in full.
        counts: kind -> kernels.
        span: seconds from the first kernel's begin to the last one's end.
        idle: seconds of the span in which no kernel ran.
    """

    seconds: dict[str, float]
    counts: dict[str, int]
    span: float
    idle: float


def trace_calls(call: Callable[[], Any], folder: Path, calls: int = CALLS) -> Path:
    """Traces calls, pipelined, of a function that returns arrays; returns the trace's file, `*.xplane.pb`.

    Raises `InputError` if the folder can't be written.
    """
    options = jax.profiler.ProfileOptions()
    options.python_tracer_level = 0  # Python's own events are many, and not looked at
    before = set(folder.rglob("*.xplane.pb"))
    with waiting("tracing", QUIET):
        try:
            with jax.profiler.trace(folder, profiler_options=options):
                jax.block_until_ready([call() for _ in range(calls)])
        except (OSError, jax.errors.JaxRuntimeError) as error:
            raise InputError(f"profile: {folder} can't be written ({in_short(error)})") from error
    made = sorted(set(folder.rglob("*.xplane.pb")) - before)
    if not made:
        raise InputError(f"profile: JAX's profiler wrote no trace into {folder}; is the disk full?")
    return made[-1]


def read_kernels(path: Path, kinds: KernelKinds) -> list[Kernel]:
    """The kernels of a trace's file."""
    with waiting("reading the trace", QUIET):
        planes = list(jax.profiler.ProfileData.from_file(str(path)).planes)
        devices = [plane for plane in planes if plane.name.startswith(_ACCELERATORS)]
        lines = [line for plane in devices for line in plane.lines if line.name.startswith(_LINES)]
        if not lines:
            lines = [line for plane in planes if plane.name == _HOST for line in plane.lines]
        return [kernel for line in lines for kernel in _kernels(line.events, kinds, bool(devices))]


def _kernels(events: Iterable[Any], kinds: KernelKinds, every: bool) -> Iterator[Kernel]:
    """Those among a line's events; unless `every` event is one, those of an HLO operation are."""
    for event in events:
        facts = {name: str(value) for name, value in event.stats if name in ("hlo_op", "hlo_category")}
        if every or "hlo_op" in facts:
            kind = kinds.of(event.name, facts.get("hlo_op", ""), facts.get("hlo_category", ""))
            if kind is not None:
                yield Kernel(kind, event.start_ns, event.start_ns + event.duration_ns)


def add_up(kernels: list[Kernel]) -> Kernels:
    """Sums of at least one kernel."""
    seconds: Counter[str] = Counter()
    for kernel in kernels:
        seconds[kernel.kind] += (kernel.end - kernel.start) / 1e9
    ordered = sorted(kernels, key=lambda kernel: kernel.start)
    idle, last = 0.0, ordered[0].start
    for kernel in ordered:
        idle += max(kernel.start - last, 0.0)
        last = max(last, kernel.end)
    counts = Counter(kernel.kind for kernel in kernels)
    return Kernels(dict(seconds), dict(counts), (last - ordered[0].start) / 1e9, idle / 1e9)


def kernel_lines(kernels: Kernels, calls: int) -> list[str]:
    """A table of kinds: milliseconds and kernels of a call, and their share of the whole; then the idle time."""
    whole, count = sum(kernels.seconds.values()), sum(kernels.counts.values())

    def line(name: str, seconds: float, count: int) -> str:
        share = f"{seconds / whole:.1%}" if whole else "-"
        return _ROW.format(name, f"{seconds / calls * 1e3:,.2f}", f"{count / calls:,.0f}", share)

    lines = [_ROW.format("kernels", "ms a call", "kernels a call", "share")]
    lines += [line(kind, kernels.seconds[kind], kernels.counts[kind]) for kind in KINDS if kind in kernels.counts]
    idle = kernels.idle / kernels.span if kernels.span else 0.0
    between = f"{idle:.1%} of the {kernels.span * 1e3:,.1f} ms from the first kernel to the last"
    return [*lines, line("all", whole, count), f"idle, no kernel runs: {between}"]


def profile(name: str, call: Callable[[], Any], text: str, folder: Path) -> list[str]:
    """Traces calls of a program whose optimised HLO is `text`, and returns the lines of their kernels' table."""
    path = trace_calls(call, folder)
    kernels = read_kernels(path, KernelKinds(text))
    head = ["", f"{CALLS} {name} were traced into {path.parent}, which TensorBoard and Perfetto show"]
    if not kernels:
        return [*head, "the trace has no kernels"]
    return [*head, *kernel_lines(add_up(kernels), CALLS)]
