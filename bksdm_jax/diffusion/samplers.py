"""Samplers: pure functions from starting noise to latents, the network's calls inside one `lax.scan`."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.schedule import ScheduleConfig

Predict = Callable[[jax.Array, jax.Array], jax.Array]
"""(latents [B, H, W, C], timestep []) -> the network's output, [B, H, W, C]."""


def timesteps(schedule: ScheduleConfig, steps: int) -> np.ndarray:
    """The timesteps of a sampling run, descending int [steps], placed as Diffusers' `timestep_spacing` says.

    Raises:
        InputError: more steps than noise levels, or none.
    """
    total = schedule.train_steps
    if not 1 <= steps <= total:
        raise InputError(f"steps: {steps} sampler steps; expected 1 to {total}")
    if schedule.timestep_spacing == "linspace":
        return np.round(np.linspace(0, total - 1, steps))[::-1].astype(np.int64)
    if schedule.timestep_spacing == "trailing":
        return np.round(np.arange(total, 0, -total / steps)).astype(np.int64)[:steps] - 1
    chosen = (np.arange(steps) * (total // steps))[::-1] + schedule.steps_offset
    if chosen[0] >= total:
        raise InputError(
            f"steps: {steps} steps with the scheduler's steps_offset {schedule.steps_offset} "
            f"begin at timestep {chosen[0]}; the last one is {total - 1}"
        )
    return chosen


def _alpha_bar(schedule: ScheduleConfig, at: np.ndarray) -> np.ndarray:
    """abar at timesteps; negative ones lie behind the last step."""
    alphas = schedule.alphas_cumprod()
    behind = 1.0 if schedule.set_alpha_to_one else alphas[0]
    return np.where(at >= 0, alphas[np.maximum(at, 0)], behind)


def ddim(predict: Predict, x: jax.Array, schedule: ScheduleConfig, steps: int) -> jax.Array:
    """DDIM with eta = 0 (Song et al. 2021, equation 12).

    Args:
        predict: the network, guidance included.
        x: standard normal noise, float32 [B, H, W, C].
        schedule: noise levels and prediction type.
        steps: number of network calls.

    Returns:
        latents, float32 [B, H, W, C].
    """
    at = timesteps(schedule, steps)
    here = _alpha_bar(schedule, at)
    there = _alpha_bar(schedule, at - schedule.train_steps // steps)

    def step(x: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        t, a, b = row  # abar now and after this step
        out = predict(x, t).astype(x.dtype)
        noise = _as_noise(schedule, out, x, a)
        start = (x - jnp.sqrt(1 - a) * noise) / jnp.sqrt(a)
        if schedule.clip_range is not None:
            start = jnp.clip(start, -schedule.clip_range, schedule.clip_range)
        return jnp.sqrt(b) * start + jnp.sqrt(1 - b) * noise, None

    rows = (jnp.asarray(at, jnp.int32), jnp.asarray(here, x.dtype), jnp.asarray(there, x.dtype))
    return jax.lax.scan(step, x, rows)[0]


# Adams-Bashforth weights of the newest output and the three before it, by how many outputs there are.
_PLMS = np.array(
    [
        [1.0, 0.0, 0.0, 0.0],
        [3 / 2, -1 / 2, 0.0, 0.0],
        [23 / 12, -16 / 12, 5 / 12, 0.0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)


def pndm(predict: Predict, x: jax.Array, schedule: ScheduleConfig, steps: int) -> jax.Array:
    """Pseudo linear multi-step sampling (Liu et al. 2022) as Stable Diffusion runs it (`skip_prk_steps`).

    The first step is taken twice: the second call, at the step's end, corrects it with the mean of both outputs. So
    `steps` steps make `steps + 1` calls of the network. Arguments and result as in `ddim`.
    """
    at = timesteps(schedule, steps)
    stride = schedule.train_steps // steps
    calls = np.concatenate([at[:1], at[1:2], at[1:]])  # the network sees these
    count = len(calls)
    start, end = calls.copy(), calls - stride
    newest = np.minimum(np.maximum(np.arange(count) - 1, 0), 3)
    weights = _PLMS[newest]
    if count > 1:
        start[1], end[1] = calls[1] + stride, calls[1]
        weights[1] = [1 / 2, 1 / 2, 0, 0]
    first = np.arange(count) == 0
    again = np.arange(count) == 1
    here, there = _alpha_bar(schedule, start), _alpha_bar(schedule, end)

    def step(
        carry: tuple[jax.Array, jax.Array, jax.Array], row: tuple[jax.Array, ...]
    ) -> tuple[tuple[jax.Array, jax.Array, jax.Array], None]:
        x, origin, past = carry  # past: the last three outputs, newest first, [3, B, H, W, C]
        t, a, b, w, is_first, is_again = row
        out = predict(x, t).astype(x.dtype)
        outputs = jnp.concatenate([out[None], past])
        mean = jnp.tensordot(w, outputs, axes=1)
        origin = jnp.where(is_first, x, origin)
        x = jnp.where(is_again, origin, x)
        past = jnp.where(is_again, past, outputs[:3])
        noise = _as_noise(schedule, mean, x, a)
        # Equation 9 of the paper, in the form that is exact for abar_t -> abar_t'.
        scale = jnp.sqrt(b / a)
        shift = (b - a) / (a * jnp.sqrt(1 - b) + jnp.sqrt(a * (1 - a) * b))
        return (scale * x - shift * noise, origin, past), None

    def array(values: np.ndarray) -> jax.Array:
        return jnp.asarray(values, x.dtype)

    rows = (jnp.asarray(calls, jnp.int32), array(here), array(there), array(weights))
    rows = (*rows, jnp.asarray(first), jnp.asarray(again))
    carry = (x, x, jnp.zeros((3, *x.shape), x.dtype))
    return jax.lax.scan(step, carry, rows)[0][0]


def _as_noise(schedule: ScheduleConfig, out: jax.Array, x: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """The network's output as a prediction of the noise."""
    if schedule.prediction == "epsilon":
        return out
    return jnp.sqrt(alpha_bar) * out + jnp.sqrt(1 - alpha_bar) * x


SAMPLERS: dict[str, Callable[[Predict, jax.Array, ScheduleConfig, int], jax.Array]] = {
    "pndm": pndm,
    "ddim": ddim,
}
