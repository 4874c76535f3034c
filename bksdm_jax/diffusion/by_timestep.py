"""Steps of DDIM, DDPM, PNDM and LCM, which go from timestep to timestep by abar."""

import itertools
from collections.abc import Iterator

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.forms import AlphaBar, Form, Run, Step, noise_form, units
from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.diffusion.spacing import timesteps


def ddim(run: Run) -> Iterator[Step]:
    """Song et al. 2021, equations 12 and 16."""
    schedule, abar = run.schedule, AlphaBar(run.schedule)
    (x,), out, start, noise = units(1)
    for t in timesteps(schedule, run.steps)[run.begin :]:
        here, there = abar(t), abar(t - schedule.train_steps // run.steps)
        deviation = run.eta * np.sqrt((1 - there) / (1 - here) * (1 - here / there))
        direction = noise_form(schedule.prediction_type, here, x, out)
        after = np.sqrt(there) * start + np.sqrt(max(1 - there - deviation**2, 0.0)) * direction + deviation * noise
        yield Step(t, abar.levels(t), [after])


def ddpm(run: Run) -> Iterator[Step]:
    """Ho et al. 2020, equation 7, for steps of any length."""
    schedule, abar = run.schedule, AlphaBar(run.schedule, final=1.0)
    (x,), _, start, noise = units(1)
    every = timesteps(schedule, run.steps)
    for i in range(run.begin, run.steps):
        here, there = abar(every[i]), abar(every[i + 1] if i + 1 < run.steps else -1)
        beta = 1 - here / there
        mean = (np.sqrt(there) * beta * start + np.sqrt(here / there) * (1 - there) * x) / (1 - here)
        variance = max((1 - there) / (1 - here) * beta, 1e-20)
        variance = beta if schedule.solver.variance_type == "fixed_large" else variance
        after = mean + (np.sqrt(variance) if every[i] > 0 else 0.0) * noise
        yield Step(every[i], abar.levels(every[i]), [after])


# Adams-Bashforth weights of the newest output and those before it, newest first.
_PLMS = ((1.0,), (3 / 2, -1 / 2), (23 / 12, -16 / 12, 5 / 12), (55 / 24, -59 / 24, 37 / 24, -9 / 24))


def pndm(run: Run) -> Iterator[Step]:
    """Liu et al. 2022, algorithm 2, with Runge-Kutta steps at the start unless the schedule skips them.

    Slots: latents, those to return to, the last three outputs, newest first, and a Runge-Kutta step's sum of outputs.
    """
    schedule, stride = run.schedule, run.schedule.train_steps // run.steps
    abar = AlphaBar(schedule)
    (x, origin, *past, total), out, _, _ = units(6)
    runge_kutta, linear = _pndm_timesteps(schedule, run.steps)

    def moved(source: Form, out: Form, here: float, there: float) -> Form:
        """Equation 9 of the paper, from timestep `here` to `there`."""
        a, b = abar(here), abar(there)
        eps = noise_form(schedule.prediction_type, a, source, out)
        return np.sqrt(b / a) * source - (b - a) / (a * np.sqrt(1 - b) + np.sqrt(a * (1 - a) * b)) * eps

    known = 0  # outputs
    for i, t in enumerate([*runge_kutta, *linear][run.begin :]):
        newest = [out, *past[:2]]
        if i < len(runge_kutta):
            here, there = runge_kutta[i // 4 * 4], t - (0 if i % 2 else stride // 2)
            if i % 4 == 0:
                slots, known = [moved(x, out, here, there), x, *newest, out / 6], known + 1
            elif i % 4 < 3:
                slots = [moved(origin, out, here, there), origin, *past, total + out / 3]
            else:
                slots = [moved(origin, total + out / 6, here, there), origin, *past, 0 * total]
            yield Step(t, abar.levels(t), slots, i // 4)
        elif i == 1 and not runge_kutta:  # repeats the first step with the mean of both outputs
            yield Step(t, abar.levels(t), [moved(origin, (out + past[0]) / 2, t + stride, t), origin, *past, total], 0)
        else:
            mean = sum(weight * e for weight, e in zip(_PLMS[min(known, 3)], [out, *past], strict=False))
            slots, known = [moved(x, mean, t, t - stride), x, *newest, total], known + 1
            yield Step(t, abar.levels(t), slots, i - 9 if runge_kutta else max(i - 1, 0))


def _pndm_timesteps(schedule: ScheduleConfig, steps: int) -> tuple[list[float], list[float]]:
    """Timesteps of the Runge-Kutta calls, four to a step, and of the others."""
    at = list(timesteps(schedule, steps))
    if schedule.skip_prk_steps:
        return [], [*at[:1], *at[1:2], *at[1:]]
    if steps < 4:
        raise InputError(
            f"steps: {steps}; PNDM needs 4 with Runge-Kutta steps, as the model's scheduler file doesn't have "
            "skip_prk_steps true; or set sampler to ddim"
        )
    half = schedule.train_steps // steps // 2
    return [call for here, there in itertools.pairwise(at[:4]) for call in (here, *2 * [there + half], there)], at[3:]


def lcm(run: Run) -> Iterator[Step]:
    """Luo et al. 2023, algorithm 3: multi-step consistency sampling."""
    schedule, solver, abar = run.schedule, run.schedule.solver, AlphaBar(run.schedule)
    at = _lcm_timesteps(schedule, run.steps)
    (x,), _, start, noise = units(1)
    for i in range(run.begin, run.steps):
        scaled = at[i] * float(solver.timestep_scaling or 0)
        skip, share = 0.25 / (scaled**2 + 0.25), scaled / np.sqrt(scaled**2 + 0.25)
        after = share * start + skip * x
        if i < run.steps - 1:
            there = abar(at[i + 1])
            after = np.sqrt(there) * after + np.sqrt(1 - there) * noise
        yield Step(at[i], abar.levels(at[i]), [after])


def _lcm_timesteps(schedule: ScheduleConfig, steps: int) -> np.ndarray:
    original = int(schedule.solver.original_inference_steps or 1)
    if steps > original:
        raise InputError(f"steps: {steps}; LCM has at most {original}, the scheduler's original_inference_steps")
    if original > schedule.train_steps:
        raise InputError(f"original_inference_steps: {original}; the schedule has {schedule.train_steps} timesteps")
    taught = np.arange(original, 0, -1) * (schedule.train_steps // original) - 1.0
    return taught[np.floor(np.linspace(0, original, steps, endpoint=False)).astype(int)]
