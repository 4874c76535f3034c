"""A sampling run as a table: the network's calls, and the linear step that follows each.

Between two calls a sampler combines linearly what it has: the latents, a few tensors that it remembers (its slots),
the network's output, the estimate of z_0, and noise. So a sampler is a list of coefficients, which `samplers` computes
in float64, and one `lax.scan` runs them all.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.diffusion.noise import step_noise

Predict = Callable[[jax.Array, jax.Array], jax.Array]
"""(latents [B, H, W, C], timestep []) -> the network's output [B, H, W, C]."""
PredictWith = Callable[[Any, jax.Array, jax.Array, jax.Array], tuple[Any, jax.Array]]
"""(memory, latents, timestep [], number of the call []) -> (memory, output)."""


@dataclasses.dataclass(frozen=True)
class Calls:
    """The N calls of a run, and the step after each; float64 unless said otherwise.

    Attributes:
        timesteps: [N]; some samplers have fractions.
        scales: [N]: the network is given the latents times this.
        starts: [N, 2]: z_0 is estimated as the first times the latents plus the second times the output.
        weights: [N, K, K + 3]: the K slots after the step, from those before it (the first are the latents), the
            output, the estimate of z_0, and noise.
        steps: int [N]: number of the step that a call belongs to, from 0.
        deviation: standard deviation of the latents at the first call.
        levels: signal and noise at the first call, for a run that begins from an image: [2].
        clip: the estimate of z_0 is clipped to plus or minus this; None: not.
    """

    timesteps: np.ndarray
    scales: np.ndarray
    starts: np.ndarray
    weights: np.ndarray
    steps: np.ndarray
    deviation: float
    levels: tuple[float, float]
    clip: float | None = None

    def __len__(self) -> int:
        return len(self.timesteps)

    @property
    def noisy(self) -> bool:
        """Whether any step adds noise."""
        return bool(self.weights[..., -1].any())

    def between(self, first: int, last: int | None = None) -> "Calls":
        """Those numbered `first` to `last` - 1, for a run in parts: `run` them with the slots of the part before."""
        part = slice(first, last)
        rows = {name: vars(self)[name][part] for name in ("timesteps", "scales", "starts", "weights", "steps")}
        return dataclasses.replace(self, **rows)

    def begin(self, noise: jax.Array, latents: jax.Array | None = None) -> jax.Array:
        """The slots before the first call, [K, B, H, W, C], from standard normal `noise` [B, H, W, C] and, for a run
        that begins from an image, its latents.
        """
        signal, deviation = (0.0, self.deviation) if latents is None else self.levels
        x = deviation * noise + (0.0 if latents is None else signal * latents)
        return jnp.zeros((self.weights.shape[1], *x.shape), x.dtype).at[0].set(x)


def step(
    calls: Calls,
    slots: jax.Array,
    out: jax.Array,
    start: jax.Array,
    weights: jax.Array,
    noise: jax.Array | None,
) -> tuple[jax.Array, jax.Array]:
    """The step after one call: slots [K, B, H, W, C] -> the slots after it, and the estimate of z_0 [B, H, W, C].

    Args:
        calls: the run.
        slots: before it.
        out: the network's output.
        start, weights: rows of `calls.starts` and `calls.weights`.
        noise: standard normal [B, H, W, C]; None if no step adds noise.
    """
    estimate = start[0] * slots[0] + start[1] * out
    if calls.clip is not None:
        estimate = jnp.clip(estimate, -calls.clip, calls.clip)
    known = [slots, out[None], estimate[None], *([] if noise is None else [noise[None]])]
    terms = jnp.concatenate(known)
    return jnp.tensordot(weights[:, : len(terms)], terms, axes=1, precision=jax.lax.Precision.HIGHEST), estimate


def run(
    calls: Calls,
    predict: PredictWith,
    slots: jax.Array,
    noise: jax.Array | None = None,
    memory: Any = None,
    number: int = 0,
    estimates: bool = False,
) -> tuple[jax.Array, Any, jax.Array | None]:
    """Runs all calls: returns the slots after them, the memory and, if `estimates`, those of z_0, [N, B, H, W, C].

    Args:
        calls: the run, or a part of it.
        predict: the network, with a memory of its own.
        slots: from `Calls.begin`, or of the part before.
        noise: of the steps, [N, B, H, W, C], or keys [B] to draw it from.
        memory: given to the first call.
        number: of the first call, in a part.
        estimates: whether to keep them.

    Raises:
        ValueError: the sampler adds noise, and there is none.
    """
    if calls.noisy and noise is None:
        raise ValueError("this sampler adds noise: give keys [B], or an array [calls, B, H, W, C]")

    def body(carry: tuple[jax.Array, Any], row: tuple[jax.Array, ...]) -> tuple[tuple[jax.Array, Any], Any]:
        (slots, memory), (i, t, scale, start, weights) = carry, row
        memory, out = predict(memory, scale * slots[0], t, i)
        added = step_noise(noise, i, slots.shape[2:]) if calls.noisy else None
        slots, estimate = step(calls, slots, out.astype(slots.dtype), start, weights, added)
        return (slots, memory), estimate if estimates else None

    floats = (calls.timesteps, calls.scales, calls.starts, calls.weights)
    numbers = jnp.arange(number, number + len(calls))
    rows = (numbers, *(jnp.asarray(column, slots.dtype) for column in floats))
    (slots, memory), kept = jax.lax.scan(body, (slots, memory), rows)
    return slots, memory, kept


def solve(
    calls: Calls,
    predict: Predict,
    noise: jax.Array,
    latents: jax.Array | None = None,
    step_noise: jax.Array | None = None,
) -> jax.Array:
    """From noise, or noised `latents`, to latents; all [B, H, W, C].

    Args:
        calls: of `samplers.sampler_calls`.
        predict: the network.
        noise: standard normal.
        latents: those of the image that the run begins from, if it does.
        step_noise: what the steps add, [N, B, H, W, C], or keys [B] to draw it from.

    Raises:
        ValueError: as `run`.
    """

    def remembering(memory: Any, x: jax.Array, t: jax.Array, number: jax.Array) -> tuple[Any, jax.Array]:
        del number
        return memory, predict(x, t)

    return run(calls, remembering, calls.begin(noise, latents), step_noise)[0][0]
