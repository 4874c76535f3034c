"""How long a compiled program takes on the present device."""

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from bksdm_jax.progress import Progress, waiting


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
    """Compiles `program` for `inputs`, runs it once to warm up, and then `repeats` times, each to its end.

    Args:
        what: its name, for progress.
        program: a function of arrays.
        *inputs: pytrees of arrays; they are put on the device first.
        repeats: at least 1.
    """
    inputs = jax.block_until_ready(jax.device_put(inputs))
    start = time.perf_counter()
    with waiting(f"compiling {what}"):
        compiled = jax.jit(program).lower(*inputs).compile()
    compiling = time.perf_counter() - start
    jax.block_until_ready(compiled(*inputs))
    seconds = []
    with Progress(what, repeats) as progress:
        for _ in range(repeats):
            start = time.perf_counter()
            jax.block_until_ready(compiled(*inputs))
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
