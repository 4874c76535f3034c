"""How long a compiled program takes on the present device."""

import dataclasses
import functools
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bksdm_jax.base.progress import Progress, waiting


@dataclasses.dataclass(frozen=True)
class Timing:
    """Seconds: of compiling, and of each repeat."""

    compiling: float
    repeats: tuple[float, ...]

    @property
    def median(self) -> float:
        """Seconds of one call."""
        return statistics.median(self.repeats)


def time_program(what: str, program: Callable[..., Any], *inputs: Any, repeats: int) -> Timing:
    """Times a function of arrays, as `time_calls` does; pytrees of `inputs` are put on the device first."""
    inputs = jax.block_until_ready(jax.device_put(inputs))
    return time_calls(what, lambda: functools.partial(jax.jit(program).lower(*inputs).compile(), *inputs), repeats)


def time_calls(what: str, build: Callable[[], Callable[[], Any]], repeats: int) -> Timing:
    """Builds a call, makes it once to warm up, and then `repeats` times, each to its end.

    Args:
        what: its name, for progress.
        build: compiles and returns what is to be called, which returns a pytree of arrays.
        repeats: at least 1.
    """
    start = time.perf_counter()
    with waiting(f"compiling {what}"):
        call = build()
    compiling = time.perf_counter() - start
    jax.block_until_ready(call())
    seconds = []
    with Progress(what, repeats) as progress:
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(call())
            seconds.append(time.perf_counter() - start)
            progress.advance()
    return Timing(compiling, tuple(seconds))


def arbitrary_weights(shapes: Any, dtype: np.dtype) -> Any:
    """Arrays for a tree of shapes, made quickly: normal numbers, scaled so that a network stays in range.

    Zeros would do for a CPU; a GPU runs faster on them than on real weights.
    """
    noise = np.random.default_rng(0).standard_normal(2**20 - 3, np.float32)  # no power of two: rows don't repeat

    def fill(leaf: jax.ShapeDtypeStruct) -> np.ndarray:
        scale = 1 / np.sqrt(max(np.prod(leaf.shape[:-1]), 1)) if len(leaf.shape) > 1 else 0.1
        array = np.resize(noise, leaf.shape) * np.float32(scale)
        return array.astype(dtype if len(leaf.shape) > 1 else np.float32)

    return jax.tree.map(fill, shapes)
