"""The samplers by name."""

import dataclasses
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np

from bksdm_jax.base.errors import InputError, known_name
from bksdm_jax.diffusion import by_sigma, by_timestep
from bksdm_jax.diffusion.choices import SAMPLERS, SCHEDULER
from bksdm_jax.diffusion.forms import Run, Step, estimate
from bksdm_jax.diffusion.schedule import RESCALING, ScheduleConfig
from bksdm_jax.diffusion.solver import Calls

_STEPS: dict[str, Callable[[Run], Iterator[Step]]] = {
    "ddim": by_timestep.ddim,
    "ddpm": by_timestep.ddpm,
    "pndm": by_timestep.pndm,
    "lcm": by_timestep.lcm,
    "euler": by_sigma.euler,
    "euler_ancestral": by_sigma.euler_ancestral,
    "heun": by_sigma.heun,
    "dpmpp": by_sigma.dpmpp,
    "unipc": by_sigma.unipc,
}
_BY_SIGMA = ("euler", "euler_ancestral", "heun", "dpmpp", "unipc")
_GROWING = ("euler", "euler_ancestral", "heun")  # latents are z_0 + sigma eps
_SUPPORTED: dict[str, dict[str, tuple[Any, ...]]] = {
    "ddpm": {"variance_type": ("fixed_small", "fixed_small_log", "fixed_large")},
    "dpmpp": {"algorithm_type": ("dpmsolver++", "sde-dpmsolver++"), "solver_order": (1, 2, 3)},
    "unipc": {"predict_x0": (True,), "solver_order": (1, 2, 3)},
}
_OWN_TYPES = {"dpmpp": ("midpoint", "heun"), "unipc": ("bh2", "bh1")}  # others become the first, as in Diffusers


def kind_of(sampler: str, schedule: ScheduleConfig) -> str:
    """The kind of a sampler, for which the schedule has options.

    Raises `InputError` for an unknown name, or `scheduler` where the model's isn't implemented.
    """
    known_name("config", "sampler", sampler, (SCHEDULER, *SAMPLERS))
    if sampler != SCHEDULER:
        return SAMPLERS[sampler][0]
    if not schedule.sampler:
        raise InputError(
            f"sampler: the model's scheduler isn't implemented; set sampler to one of {', '.join(SAMPLERS)}"
        )
    return schedule.sampler


def with_options(schedule: ScheduleConfig, sampler: str) -> ScheduleConfig:
    """The schedule with every option of the sampler; raises `InputError` if they aren't supported."""
    kind = kind_of(sampler, schedule)
    fixed = {} if sampler == SCHEDULER else SAMPLERS[sampler][1]
    schedule = dataclasses.replace(schedule, solver=dataclasses.replace(schedule.solver, **fixed)).for_sampler(kind)
    solver = schedule.solver
    if kind in _OWN_TYPES and solver.solver_type not in _OWN_TYPES[kind]:
        solver = dataclasses.replace(solver, solver_type=_OWN_TYPES[kind][0])
    if solver.algorithm_type == "deis":
        solver = dataclasses.replace(solver, algorithm_type="dpmsolver++")
    if solver.sigma_spacing == "lu" and kind != "dpmpp":
        solver = dataclasses.replace(solver, sigma_spacing="")
    for option, values in _SUPPORTED.get(kind, {}).items():
        if (found := vars(solver)[option]) not in values:
            raise InputError(
                f"sampler: the model's scheduler has {option} {found}; {kind} is implemented with "
                f"{' or '.join(map(str, values))}; set another sampler"
            )
    if schedule.zero_snr and kind not in RESCALING:
        raise InputError(f"sampler: {kind} isn't defined for zero terminal SNR, as this model has; set sampler to ddim")
    if schedule.prediction_type == "sample" and kind in ("pndm", "euler_ancestral"):
        raise InputError(f"sampler: {kind} isn't defined for a model that predicts z_0; set sampler to ddim")
    return dataclasses.replace(schedule, solver=solver)


def sampler_calls(
    sampler: str, schedule: ScheduleConfig, steps: int, begin: int | None = None, eta: float = 0.0
) -> Calls:
    """The calls of a sampling run, as Diffusers' class makes them.

    Args:
        sampler: `scheduler` or a key of `SAMPLERS`.
        schedule: the model's.
        steps: as Diffusers counts them: PNDM makes one call more, or nine with Runge-Kutta steps, Heun's method nearly
            two a step.
        begin: for a run that begins from an image: the number of steps left out at the start.
        eta: of DDIM: 0 is deterministic, 1 has the noise of DDPM.

    Raises:
        InputError: an unknown sampler, options that aren't supported, or a number of steps that Diffusers refuses.
    """
    kind, schedule = kind_of(sampler, schedule), with_options(schedule, sampler)
    if eta and kind != "ddim":
        raise InputError(f"eta: {eta}; only ddim has it, not {kind}")
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        try:
            made = list(_STEPS[kind](Run(schedule, steps, begin or 0, eta)))
        except np.linalg.LinAlgError as error:  # levels that repeat
            raise InputError(f"sampler: {kind} isn't defined for {steps} steps of this model's levels") from error
        starts = [estimate(schedule.prediction_type, *one.levels) for one in made]
    timesteps = np.array([one.timestep for one in made])
    if begin is None and kind in _BY_SIGMA and len(set(timesteps[:2])) < min(len(timesteps), 2):
        raise InputError(f"steps: {steps} steps repeat the first timestep, {timesteps[0]:.0f}; use fewer")
    calls = Calls(
        timesteps,
        np.array([1 / np.hypot(*one.levels) for one in made]),
        np.array(starts),
        np.array([one.slots for one in made]),
        np.array([i if one.number is None else one.number for i, one in enumerate(made)]),
        _deviation(kind, schedule, made[0].levels[1]),
        made[0].levels,
        schedule.clip_sample_range if schedule.clip_sample else None,
    )
    if not all(np.isfinite(part).all() for part in (calls.timesteps, calls.starts, calls.weights)):
        raise InputError(f"sampler: {kind} isn't defined for this model's noise levels and options; set another one")
    return calls


def _deviation(kind: str, schedule: ScheduleConfig, sigma: float) -> float:
    """Standard deviation of the latents that a run from noise begins with (Diffusers' `init_noise_sigma`)."""
    if kind not in _GROWING:
        return 1.0
    return float(np.hypot(sigma, 1) if schedule.timestep_spacing == "leading" else sigma)
