"""Measures the time of compiled programs on this machine's device."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bksdm_jax.base.compiling import lower
from bksdm_jax.base.progress import QUIET, Progress, waiting


@dataclasses.dataclass(frozen=True)
class Timing:
    """What a compiled program takes.

    Attributes:
        compiling: seconds.
        median: seconds of a call, each waited for before the next.
        pipelined: seconds per call when all are issued before the first is waited for, as a training loop does. On a
            GPU or TPU the host's work for the next call then hides behind the current one; on CPUs it hardly differs.
        memory: bytes of the device at their peak since this process began, earlier programs included; None: the device
            doesn't tell.
    """

    compiling: float
    median: float
    pipelined: float
    memory: int | None = None


@dataclasses.dataclass(frozen=True)
class Program:
    """A compiled program with its inputs.

    Attributes:
        name: of its calls, for progress.
        call: issues a call, and returns a pytree of arrays that may not be ready yet.
        text: returns its optimised HLO.
        compiling: seconds that compiling took.
    """

    name: str
    call: Callable[[], Any]
    text: Callable[[], str]
    compiling: float


def compile_program(name: str, program: Callable[..., Any], *inputs: Any) -> Program:
    """Compiles a function of pytrees, with its inputs on the device."""
    inputs = jax.block_until_ready(jax.device_put(inputs))

    def build() -> tuple[Callable[[], Any], Callable[[], str]]:
        compiled = lower(jax.jit(program), *inputs).compile()
        return functools.partial(compiled, *inputs), compiled.as_text

    return build_program(name, build)


def build_program(name: str, build: Callable[[], tuple[Callable[[], Any], Callable[[], str]]]) -> Program:
    """The program of which `build` compiles and returns `call` and `text`; shows and measures how long it takes."""
    start = time.perf_counter()
    with waiting(f"compiling {name}"):
        call, text = build()
    return Program(name, call, text, time.perf_counter() - start)


def time_program(name: str, program: Callable[..., Any], *inputs: Any, repeats: int) -> float:
    """Compiles a function of pytrees; the median seconds of `repeats` calls, one by one."""
    return _one_by_one(compile_program(name, program, *inputs), repeats)


def time_calls(program: Program, repeats: int) -> Timing:
    """Times a compiled program: one call to warm up, `repeats` (at least 1) one by one, and as many pipelined."""
    median = _one_by_one(program, repeats)
    with waiting(f"{program.name}, pipelined", QUIET):
        start = time.perf_counter()
        jax.block_until_ready([program.call() for _ in range(repeats)])
        pipelined = (time.perf_counter() - start) / repeats
    return Timing(program.compiling, median, pipelined, peak_memory())


def _one_by_one(program: Program, repeats: int) -> float:
    """The median seconds of a call, after one to warm up."""
    with waiting(f"the first of the {program.name}", QUIET):
        jax.block_until_ready(program.call())
    seconds = []
    with Progress(program.name, repeats) as progress:
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(program.call())
            seconds.append(time.perf_counter() - start)
            progress.advance()
    return statistics.median(seconds)


def peak_memory() -> int | None:
    """Bytes that this process has held at once on its first device; None: the device doesn't tell, as CPUs."""
    return (jax.local_devices()[0].memory_stats() or {}).get("peak_bytes_in_use")


@waiting("making weights", QUIET)
def arbitrary_weights(shapes: Any, dtype: np.dtype) -> Any:
    """Quickly generated weights for a tree of shapes: normal, scaled so that activations stay in range.

    Leaves named `var` are variances and so above 0. Not zeros, on which GPUs run faster than on real weights.
    """
    count = 2**20 - 3  # not a power of two, so that rows don't repeat
    noise = np.random.default_rng(0).standard_normal(count, np.float32)

    def fill(path: tuple[Any, ...], leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = 1 / np.sqrt(max(np.prod(leaf.shape[:-1]), 1)) if len(leaf.shape) > 1 else 0.1
        array = np.resize(noise, leaf.shape) * np.float32(scale)
        if getattr(path[-1] if path else None, "key", "") == "var":
            array = np.exp(array)
        return array.astype(dtype if len(leaf.shape) > 1 else np.float32)

    return jax.tree.map_with_path(fill, shapes)
