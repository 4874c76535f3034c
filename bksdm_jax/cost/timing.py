"""Measures the time of compiled programs on this machine's device."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bksdm_jax.base.progress import QUIET, Progress, waiting


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds of compilation, and median seconds of a call."""

    compiling: float
    median: float


def time_program(what: str, program: Callable[..., Any], *inputs: Any, repeats: int) -> Timing:
    """Times a function of pytrees like `time_calls`, with its inputs already on the device."""
    inputs = jax.block_until_ready(jax.device_put(inputs))
    return time_calls(what, lambda: functools.partial(jax.jit(program).lower(*inputs).compile(), *inputs), repeats)


def time_calls(what: str, build: Callable[[], Callable[[], Any]], repeats: int) -> Timing:
    """Times a compiled function: one call to warm up, then `repeats` calls.

    Args:
        what: its name, for progress.
        build: compiles and returns a function without arguments that returns a pytree of arrays.
        repeats: at least 1.
    """
    start = time.perf_counter()
    with waiting(f"compiling {what}"):
        call = build()
    compiling = time.perf_counter() - start
    with waiting(f"the first of the {what}", QUIET):
        jax.block_until_ready(call())
    seconds = []
    with Progress(what, repeats) as progress:
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds.append(time.perf_counter() - start)
            progress.advance()
    return Timing(compiling, statistics.median(seconds))


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
