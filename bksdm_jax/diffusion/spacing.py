"""Which timesteps and noise levels a sampling run visits, as in Diffusers' schedulers."""

import numpy as np
from scipy.stats import beta

from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.schedule import ScheduleConfig

_RHO = 7.0
_CONTINUOUS = "continuous"


def require_steps(schedule: ScheduleConfig, steps: int) -> None:
    """Raises `InputError` if `steps` isn't in 1 .. T."""
    if not 1 <= steps <= schedule.train_steps:
        raise InputError(f"steps: {steps} sampler steps; expected 1 to {schedule.train_steps}")


def timesteps(schedule: ScheduleConfig, steps: int, whole: bool = True) -> np.ndarray:
    """The timesteps of a run, descending, float64 [steps], spaced by Diffusers' `timestep_spacing`.

    `whole` rounds those of `linspace`. Raises `InputError` if `steps` isn't in 1 .. T, or the first timestep would be
    beyond T-1.
    """
    require_steps(schedule, steps)
    total = schedule.train_steps
    if schedule.timestep_spacing == "linspace":
        spaced = np.linspace(0, total - 1, steps)[::-1]
        return np.round(spaced) if whole else spaced.astype(np.float32).astype(np.float64)
    if schedule.timestep_spacing == "trailing":
        return np.round(np.arange(total, 0, -total / steps))[:steps] - 1.0
    return _within(schedule, np.arange(steps)[::-1] * (total // steps) + float(schedule.steps_offset or 0), steps)


def timesteps_above(schedule: ScheduleConfig, steps: int) -> np.ndarray:
    """Like `timesteps`, for solvers that end above timestep 0: the range is divided for one step more.

    With `lambda_min_clipped` the timesteps with a smaller half log SNR are left out.
    """
    require_steps(schedule, steps)
    total = last = schedule.train_steps
    lowest = schedule.solver.lambda_min_clipped
    if lowest is not None:
        last -= int(np.sum(-np.log(sigmas_of(schedule)) < lowest))
    if schedule.timestep_spacing == "linspace":
        return np.round(np.linspace(0, last - 1, steps + 1))[:0:-1]
    if schedule.timestep_spacing == "trailing":
        return np.round(np.arange(last, 0, -total / steps))[:steps] - 1.0
    spaced = np.arange(1, steps + 1)[::-1] * (last // (steps + 1)) + float(schedule.steps_offset or 0)
    return _within(schedule, spaced, steps)


def _within(schedule: ScheduleConfig, spaced: np.ndarray, steps: int) -> np.ndarray:
    if spaced[0] >= schedule.train_steps:
        raise InputError(
            f"steps: {steps} steps with the scheduler's steps_offset {schedule.steps_offset} "
            f"start at timestep {spaced[0]:.0f}; the largest is {schedule.train_steps - 1}"
        )
    return spaced


def sigmas_of(schedule: ScheduleConfig) -> np.ndarray:
    """sigma_t = sqrt((1 - abar_t) / abar_t), float32 [T], as Diffusers computes it; where abar is 0, it takes 2^-24.

    In float32, since levels that are computed from it decide which whole timestep the network is told.
    """
    one = np.float32(1)
    betas = schedule.betas().astype(np.float32)
    if schedule.zero_snr:
        signal = np.sqrt(np.cumprod(one - betas, dtype=np.float64).astype(np.float32))
        signal = (signal - signal[-1]) * (signal[0] / (signal[0] - signal[-1]))
        abar = np.square(signal)
        betas = one - np.append(abar[:1], abar[1:] / abar[:-1])
    abar = np.cumprod(one - betas, dtype=np.float64).astype(np.float32)
    if schedule.zero_snr:
        abar[-1] = 2.0**-24
    return np.sqrt((one - abar) / abar)


def levels(schedule: ScheduleConfig, at: np.ndarray, steps: int) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps [N] and noise levels sigma [N + 1] of Euler's and Heun's methods.

    `at` are the spaced timesteps, which the options for sigma (`sigma_spacing`, `interpolation_type`) replace.
    """
    solver, every = schedule.solver, sigmas_of(schedule)
    sigma = np.interp(at, np.arange(len(every)), every)
    if solver.interpolation_type == "log_linear":
        sigma = np.exp(np.linspace(np.log(every[-1]), np.log(every[0]), steps + 1, dtype=np.float32))
    if solver.sigma_spacing:
        sigma = _spaced(schedule, sigma, steps)
        at = _timestep_of(sigma, every)
    sigma = _single(np.append(sigma, every[0] if solver.final_sigmas_type == "sigma_min" else 0.0))
    if solver.timestep_type == _CONTINUOUS and schedule.prediction_type == "v_prediction":
        at = 0.25 * np.log(sigma[:-1])
    return _single(at), sigma


def levels_above(schedule: ScheduleConfig, steps: int, rounded: bool, own_final: bool) -> tuple[np.ndarray, np.ndarray]:
    """Timesteps [N] and noise levels sigma [N + 1] of the multi-step solvers DPM-Solver++ and UniPC.

    Args:
        schedule: with the options for sigma.
        steps: of the sampler.
        rounded: timesteps of Karras's spacing are rounded rather than cut to whole numbers.
        own_final: with `final_sigmas_type` `sigma_min`, the last level repeats the one before it, if `sigma_spacing`
            made them, rather than being that of timestep 0.
    """
    solver, every, at = schedule.solver, sigmas_of(schedule), timesteps_above(schedule, steps)
    sigma, final = np.interp(at, np.arange(len(every)), every), every[0]
    if solver.sigma_spacing:
        sigma = _spaced(schedule, every[::-1], steps)
        at = _timestep_of(sigma, every)
        at = np.round(at) if rounded and solver.sigma_spacing in ("karras", "lu") else at
        final = sigma[-1] if own_final else final
    return np.trunc(at), _single(np.append(sigma, final if solver.final_sigmas_type == "sigma_min" else 0.0))


def _spaced(schedule: ScheduleConfig, given: np.ndarray, steps: int) -> np.ndarray:
    """Noise levels spaced by `sigma_spacing` between the first and the last of `given`, descending, [steps].

    `karras` is equation 5 of Karras et al. 2022; `exponential` is even in log sigma, and so is `lu` (Lu et al. 2022,
    section 3.3); `beta` are quantiles of a beta distribution (Lee et al. 2024).
    """
    solver = schedule.solver
    low = float(given[-1] if solver.sigma_min is None else solver.sigma_min)
    high = float(given[0] if solver.sigma_max is None else solver.sigma_max)
    ramp = np.linspace(0, 1, steps)
    if solver.sigma_spacing == "karras":
        least, most = low ** (1 / _RHO), high ** (1 / _RHO)
        return (most + ramp * (least - most)) ** _RHO
    if solver.sigma_spacing == "beta":
        return low + beta.ppf(1 - ramp, 0.6, 0.6) * (high - low)
    if solver.sigma_spacing == "lu":
        least, most = float(np.log(given[-1])), float(np.log(given[0]))
        return np.exp(most + ramp * (least - most))
    return np.exp(np.linspace(np.log(high), np.log(low), steps))


def _timestep_of(sigma: np.ndarray, every: np.ndarray) -> np.ndarray:
    """The timesteps, with fractions, at which `every`, the training's levels, interpolated in log sigma, is `sigma`."""
    known, wanted = np.log(every), np.log(np.maximum(sigma, 1e-10))
    low = np.clip(np.searchsorted(known, wanted, side="right") - 1, 0, len(known) - 2)
    share = np.clip((known[low] - wanted) / (known[low] - known[low + 1]), 0, 1)
    return (1 - share) * low + share * (low + 1)


def _single(values: np.ndarray) -> np.ndarray:
    """Rounded to float32, as they are in Diffusers."""
    return values.astype(np.float32).astype(np.float64)
