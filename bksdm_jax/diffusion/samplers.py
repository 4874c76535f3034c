"""Samplers: pure functions from starting noise to latents that call the network, guided, inside one `lax.scan`.

The single steps are public too (`ddim_step`, `pndm_step`), for callers with a loop of their own.
"""

import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.noise import step_noise
from bksdm_jax.diffusion.schedule import ScheduleConfig

Predict = Callable[[jax.Array, jax.Array], jax.Array]
"""(latents [B, H, W, C], timestep []) -> the network's output [B, H, W, C]."""


def guided(
    network: Callable[[jax.Array, jax.Array, Any], jax.Array], conditioning: Any, negative: Any, scale: float
) -> Predict:
    """Classifier-free guidance (Ho and Salimans 2022), from one call at twice the batch size.

    Predicts e_negative + scale (e_conditional - e_negative), in float32.

    Args:
        network: (latents [B, H, W, C], timesteps [B], conditioning) -> [B, H, W, C].
        conditioning, negative: pytrees of arrays [B, ...], the latter for the empty (or negative) prompt.
        scale: at most 1, or conditioning without arrays, disables guidance, at the original batch size.
    """
    guides = scale > 1.0 and bool(jax.tree.leaves(conditioning))
    both = jax.tree.map(lambda *pair: jnp.concatenate(pair), negative, conditioning) if guides else conditioning

    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        inputs = jnp.concatenate([x, x]) if guides else x
        out = network(inputs, jnp.broadcast_to(t, inputs.shape[:1]), both).astype(jnp.float32)
        if not guides:
            return out
        without, conditional = jnp.split(out, 2)
        return without + scale * (conditional - without)

    return predict


def timesteps(schedule: ScheduleConfig, steps: int) -> np.ndarray:
    """The timesteps of a sampling run, descending, int [steps], spaced by Diffusers' `timestep_spacing`.

    Raises `InputError` if `steps` isn't in 1 .. T, or the first timestep would be beyond T-1.
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
            f"start at timestep {chosen[0]}; the largest is {total - 1}"
        )
    return chosen


def _alpha_bar(schedule: ScheduleConfig, at: np.ndarray) -> np.ndarray:
    """abar at timesteps `at`; negative ones are after the last step."""
    alphas = schedule.alphas_cumprod()
    final = 1.0 if schedule.set_alpha_to_one else alphas[0]
    return np.where(at >= 0, alphas[np.maximum(at, 0)], final)


def ddim_step(
    schedule: ScheduleConfig,
    x: jax.Array,
    out: jax.Array,
    here: jax.Array,
    there: jax.Array,
    noise: jax.Array | None = None,
    eta: float = 0.0,
) -> jax.Array:
    """One step of DDIM (Song et al. 2021, equations 12 and 16) from latents `x` to those after it, [B, H, W, C].

    Args:
        schedule: prediction type and clipping of z_0.
        x, out: the latents, and the network's output for them.
        here, there: abar before and after the step, [].
        noise: standard normal, shaped as `x`; needed if `eta` is above 0.
        eta: 0 is deterministic, 1 has the noise of DDPM.
    """
    predicted = _noise_of(schedule, out, x, here)
    if schedule.prediction_type == "epsilon":
        start = (x - jnp.sqrt(1 - here) * predicted) / jnp.sqrt(here)
    else:  # holds at abar = 0 too
        start = jnp.sqrt(here) * x - jnp.sqrt(1 - here) * out
    if schedule.clip_sample:
        start = jnp.clip(start, -schedule.clip_sample_range, schedule.clip_sample_range)
    if not eta:
        return jnp.sqrt(there) * start + jnp.sqrt(1 - there) * predicted
    deviation = eta * jnp.sqrt((1 - there) / (1 - here) * (1 - here / there))
    direction = jnp.sqrt(1 - there - jnp.square(deviation)) * predicted
    return jnp.sqrt(there) * start + direction + deviation * noise


def ddim(
    predict: Predict,
    x: jax.Array,
    schedule: ScheduleConfig,
    steps: int,
    noise: jax.Array | None = None,
    eta: float = 0.0,
) -> jax.Array:
    """Samples with DDIM in `steps` calls of the network: standard normal `x` -> latents, both float32 [B, H, W, C].

    `noise` is that of each step, [steps, B, H, W, C], or keys [B] to draw it from; it is unused if `eta`, as in
    `ddim_step`, is 0, and otherwise raises `ValueError` if missing.
    """
    if eta and noise is None:
        raise ValueError(f"eta is {eta}, so noise is needed: keys [B], or an array [steps, B, H, W, C]")
    schedule = schedule.for_sampler("ddim")
    at = timesteps(schedule, steps)
    here = _alpha_bar(schedule, at)
    there = _alpha_bar(schedule, at - schedule.train_steps // steps)

    def step(x: jax.Array, row: tuple[jax.Array, ...]) -> tuple[jax.Array, None]:
        number, t, a, b = row
        added = step_noise(noise, number, x.shape[1:]) if eta else None
        return ddim_step(schedule, x, predict(x, t).astype(x.dtype), a, b, added, eta), None

    numbers = jnp.arange(steps)
    rows = (numbers, jnp.asarray(at, jnp.int32), jnp.asarray(here, x.dtype), jnp.asarray(there, x.dtype))
    return jax.lax.scan(step, x, rows)[0]


# Row k: Adams-Bashforth weights of the newest output and the k before it, newest first.
_PLMS = np.array(
    [
        [1.0, 0.0, 0.0, 0.0],
        [3 / 2, -1 / 2, 0.0, 0.0],
        [23 / 12, -16 / 12, 5 / 12, 0.0],
        [55 / 24, -59 / 24, 37 / 24, -9 / 24],
    ]
)


class PNDMState(NamedTuple):
    """The state between steps; `past` are the last three outputs, newest first."""

    x: jax.Array  # [B, H, W, C]
    origin: jax.Array  # [B, H, W, C]: the latents to which a call may go back
    past: jax.Array  # [3, B, H, W, C]
    total: jax.Array  # [B, H, W, C]: a Runge-Kutta step's weighted outputs


class PNDMCalls(NamedTuple):
    """The network calls of a sampling run, one row each."""

    timestep: jax.Array  # int32 [N]
    here: jax.Array  # [N]: abar before
    there: jax.Array  # [N]: abar after
    weights: jax.Array  # [N, 4]: of the output and the past ones
    share: jax.Array  # [N]: of the output in the total
    ends: jax.Array  # bool [N]: adds the total to the output, and clears it
    starts: jax.Array  # bool [N]: the origin is here
    returns: jax.Array  # bool [N]: steps from the origin, and the output isn't kept


def pndm_calls(schedule: ScheduleConfig, steps: int, dtype: jnp.dtype = jnp.float32) -> PNDMCalls:
    """The calls of a run: twelve for three Runge-Kutta steps and `steps - 3` others or, without Runge-Kutta steps,
    `steps + 1`, of which the second repeats the first step with the mean of both outputs.

    Raises `InputError` as `timesteps`, for fewer than four steps with Runge-Kutta, and for a rescaled schedule.
    """
    schedule = schedule.for_sampler("pndm")
    if schedule.zero_snr:
        raise InputError("sampler: PNDM isn't defined for zero terminal SNR, as this model has; set sampler to ddim")
    at = timesteps(schedule, steps)
    stride = schedule.train_steps // steps
    if schedule.skip_prk_steps:
        rows = _multistep_rows(np.concatenate([at[:1], at[1:2], at[1:]]), stride)
    elif steps < 4:
        raise InputError(
            f"steps: {steps}; PNDM needs 4 with Runge-Kutta steps, as the model's scheduler file doesn't have "
            "skip_prk_steps true; or set sampler to ddim"
        )
    else:
        rows = _runge_kutta_rows(at[:4], stride) + _multistep_rows(at[3:], stride, begun=True)
    call, start, end, weights, share, ends, starts, returns = (np.array(column) for column in zip(*rows, strict=True))
    levels = (_alpha_bar(schedule, start), _alpha_bar(schedule, end), weights, share)
    flags = (jnp.asarray(column) for column in (ends, starts, returns))
    return PNDMCalls(jnp.asarray(call, jnp.int32), *(jnp.asarray(level, dtype) for level in levels), *flags)


def _multistep_rows(calls: np.ndarray, stride: int, begun: bool = False) -> list[tuple[Any, ...]]:
    """(call, from, to, weights, share, ends, starts, returns) of linear multi-step calls; `begun`: not the first."""
    rows = []
    for i, t in enumerate(calls):
        if i == 1 and not begun:
            rows.append((t, t + stride, t, [1 / 2, 1 / 2, 0, 0], 0.0, False, False, True))
        else:
            order = 3 if begun else min(max(i - 1, 0), 3)
            rows.append((t, t, t - stride, _PLMS[order], 0.0, False, i == 0, False))
    return rows


def _runge_kutta_rows(at: np.ndarray, stride: int) -> list[tuple[Any, ...]]:
    """The same for Runge-Kutta steps from each of `at` to the next: two calls half a step on, one at the end."""
    rows, half = [], stride // 2
    newest, alone = [1.0, 0.0, 0.0, 0.0], [1 / 6, 0.0, 0.0, 0.0]
    for here, there in itertools.pairwise(at):
        middle = there + half
        rows += [
            (here, here, here - half, newest, 1 / 6, False, True, False),
            (middle, here, middle, newest, 1 / 3, False, False, True),
            (middle, here, middle - half, newest, 1 / 3, False, False, True),
            (there, here, there, alone, 0.0, True, False, True),
        ]
    return rows


def pndm_step(schedule: ScheduleConfig, state: PNDMState, out: jax.Array, call: PNDMCalls) -> PNDMState:
    """One step of PNDM; `out` [B, H, W, C] is the network's output at `call.timestep`, `call` one row of the calls."""
    outputs = jnp.concatenate([out[None], state.past])
    mean = jnp.tensordot(call.weights, outputs, axes=1) + jnp.where(call.ends, state.total, 0)
    total = jnp.where(call.ends, 0, state.total + call.share * out)
    origin = jnp.where(call.starts, state.x, state.origin)
    x = jnp.where(call.returns, origin, state.x)
    past = jnp.where(call.returns, state.past, outputs[:3])
    noise = _noise_of(schedule, mean, x, call.here)
    # Equation 9 of the paper, for a step abar_t -> abar_t'.
    a, b = call.here, call.there
    shift = (b - a) / (a * jnp.sqrt(1 - b) + jnp.sqrt(a * (1 - a) * b))
    return PNDMState(jnp.sqrt(b / a) * x - shift * noise, origin, past, total)


def pndm(predict: Predict, x: jax.Array, schedule: ScheduleConfig, steps: int) -> jax.Array:
    """Samples with PNDM (Liu et al. 2022), with the paper's Runge-Kutta steps at the start unless the schedule skips
    them, as Stable Diffusion's do. `pndm_calls` has the calls; otherwise like `ddim` without noise.
    """

    def step(state: PNDMState, call: PNDMCalls) -> tuple[PNDMState, None]:
        return pndm_step(schedule, state, predict(state.x, call.timestep).astype(state.x.dtype), call), None

    state = PNDMState(x, x, jnp.zeros((3, *x.shape), x.dtype), jnp.zeros_like(x))
    return jax.lax.scan(step, state, pndm_calls(schedule, steps, x.dtype))[0].x


def _noise_of(schedule: ScheduleConfig, out: jax.Array, x: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """The noise that the network's output predicts."""
    if schedule.prediction_type == "epsilon":
        return out
    return jnp.sqrt(alpha_bar) * out + jnp.sqrt(1 - alpha_bar) * x


SAMPLERS: dict[str, Callable[[Predict, jax.Array, ScheduleConfig, int], jax.Array]] = {"pndm": pndm, "ddim": ddim}
"""Name -> (predict, noise, schedule, steps) -> latents."""
