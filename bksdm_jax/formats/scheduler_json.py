"""`ScheduleConfig` to and from `scheduler_config.json`, as in Diffusers' pipeline and `from_config`."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from bksdm_jax.base.errors import InputError, finite_number, known_name, shown, true_or_false, whole_number
from bksdm_jax.diffusion.schedule import BETAS, MOST_BETA, SPACINGS, TARGETS, ScheduleConfig, SolverOptions
from bksdm_jax.formats.limits import MOST_NOISE_LEVELS


@dataclasses.dataclass(frozen=True)
class _Scheduler:
    """A class of Diffusers with Stable Diffusion's kind of noise levels.

    Attributes:
        sampler: the key of `SAMPLERS`; empty: not implemented, so that a sampler must be named.
        betas: defaults of `beta_start` and `beta_end`.
        rescales: whether it has `rescale_betas_zero_snr`.
        beta_schedule: its default.
    """

    sampler: str = ""
    betas: tuple[float, float] = (0.0001, 0.02)
    rescales: bool = False
    beta_schedule: str = "linear"


_KARRAS = _Scheduler(betas=(0.00085, 0.012))
_DEFAULT = "PNDMScheduler"
SCHEDULERS = {
    "DDIMParallelScheduler": _Scheduler("ddim", rescales=True),
    "DDIMScheduler": _Scheduler("ddim", rescales=True),
    "DDPMParallelScheduler": _Scheduler("ddpm", rescales=True),
    "DDPMScheduler": _Scheduler("ddpm", rescales=True),
    "DEISMultistepScheduler": _Scheduler(),
    "DPMSolverMultistepScheduler": _Scheduler("dpmpp", rescales=True),
    "DPMSolverSDEScheduler": _KARRAS,
    "DPMSolverSinglestepScheduler": _Scheduler(),
    "EulerAncestralDiscreteScheduler": _Scheduler("euler_ancestral", rescales=True),
    "EulerDiscreteScheduler": _Scheduler("euler", rescales=True),
    "HeunDiscreteScheduler": _Scheduler("heun", (0.00085, 0.012)),
    "KDPM2AncestralDiscreteScheduler": _KARRAS,
    "KDPM2DiscreteScheduler": _KARRAS,
    "LCMScheduler": _Scheduler("lcm", (0.00085, 0.012), rescales=True, beta_schedule="scaled_linear"),
    "LMSDiscreteScheduler": _Scheduler(),
    _DEFAULT: _Scheduler("pndm"),
    "SASolverScheduler": _Scheduler(),
    "UniPCMultistepScheduler": _Scheduler("unipc", rescales=True),
}
_IN_FLAX = ("DDIMScheduler", _DEFAULT)  # of Diffusers' Flax classes, those that take the same options
_WITHOUT_OFFSET = ("DPMSolverSinglestepScheduler",)
_CLIPS = ("DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler")  # unless told not to


def schedule_from_diffusers(json: Mapping[str, Any], source: str = "scheduler_config.json") -> ScheduleConfig:
    """Reads a `scheduler_config.json`, whose `_class_name` is PNDM's if missing.

    The noise levels are those of that class. What else is missing stays open (`ScheduleConfig.for_sampler`).
    `StableDiffusionPipeline` sets `steps_offset` to 1 and `clip_sample` to false whatever the file says; so does this
    function, with a log line for each.

    Raises `InputError` for a class that isn't of Stable Diffusion's kind, and unsupported or invalid values.
    """
    name = json.get("_class_name") or _DEFAULT
    bare = name.removeprefix("Flax") if isinstance(name, str) else name
    if not isinstance(bare, str) or bare not in SCHEDULERS:
        known = ", ".join(name.removesuffix("Scheduler") for name in SCHEDULERS)
        raise InputError(
            f"{source}: _class_name {shown(name)} isn't known as a scheduler of Stable Diffusion's noise levels; "
            f"known: {known} (each with Scheduler)"
        )
    scheduler = SCHEDULERS[bare]

    def number(key: str, default: float, most: float = math.inf) -> float:
        return finite_number(source, key, json.get(key, default), 0, most)

    def flag(key: str) -> bool | None:
        """None: missing; null is false."""
        return true_or_false(source, key, json[key] or False) if key in json else None

    for key in ("thresholding", "use_flow_sigmas"):
        if flag(key):
            raise InputError(f"{source}: {key} is true; only false is supported")
    predicts = known_name(source, "prediction_type", json.get("prediction_type", "epsilon"), TARGETS)
    zero_snr = bool(flag("rescale_betas_zero_snr"))
    if zero_snr and not scheduler.rescales:
        raise InputError(f"{source}: rescale_betas_zero_snr is true, but {bare} has no such option; use DDIMScheduler")
    if zero_snr and predicts == "epsilon":
        raise InputError(f"{source}: rescale_betas_zero_snr is true; expected prediction_type v_prediction with it")
    train_steps = whole_number(
        source, "num_train_timesteps", json.get("num_train_timesteps", 1000), 1, MOST_NOISE_LEVELS
    )
    spacing = json.get("timestep_spacing")
    config = ScheduleConfig(
        train_steps=train_steps,
        beta_start=number("beta_start", scheduler.betas[0], MOST_BETA),
        beta_end=number("beta_end", scheduler.betas[1], MOST_BETA),
        beta_schedule=known_name(source, "beta_schedule", json.get("beta_schedule", scheduler.beta_schedule), BETAS),
        trained_betas=_trained_betas(json.get("trained_betas"), train_steps, source),
        zero_snr=zero_snr,
        prediction_type=predicts,
        sampler=scheduler.sampler,
        steps_offset=_steps_offset(json, bare, source),
        set_alpha_to_one=flag("set_alpha_to_one"),
        timestep_spacing=None if spacing is None else known_name(source, "timestep_spacing", spacing, SPACINGS),
        clip_sample=_clip_sample(json, flag("clip_sample"), bare, source),
        clip_sample_range=number("clip_sample_range", 1.0),
        skip_prk_steps=flag("skip_prk_steps"),
        solver=_solver_options(json, source),
    )
    if zero_snr and not np.ptp(config.alphas_cumprod()) > 0:  # also if NaN
        raise InputError(f"{source}: rescale_betas_zero_snr is true, but all noise levels are equal")
    return config


_SPACINGS = {"use_karras_sigmas": "karras", "use_exponential_sigmas": "exponential", "use_beta_sigmas": "beta"}
_WORDS = {
    "variance_type": ("fixed_small", "fixed_small_log", "fixed_large", "fixed_large_log", "learned", "learned_range"),
    "algorithm_type": (
        *("dpmsolver++", "sde-dpmsolver++", "dpmsolver", "sde-dpmsolver"),
        *("deis", "data_prediction", "noise_prediction"),  # of DEIS and SASolver
    ),
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2"),
    "final_sigmas_type": ("zero", "sigma_min"),
    "interpolation_type": ("linear", "log_linear"),
    "timestep_type": ("discrete", "continuous"),
}
_NUMBERS = ("sigma_min", "sigma_max", "timestep_scaling")
_WHOLE = ("solver_order", "original_inference_steps")
_FLAGS = ("lower_order_final", "euler_at_final", "predict_x0")


def _solver_options(json: Mapping[str, Any], source: str) -> SolverOptions:
    """The options of single samplers that the file has; null counts as missing."""
    given = {key: value for key, value in json.items() if value is not None}
    found: dict[str, Any] = {key: known_name(source, key, given[key], _WORDS[key]) for key in _WORDS if key in given}
    found |= {key: finite_number(source, key, given[key], 0) for key in _NUMBERS if key in given}
    found |= {key: whole_number(source, key, given[key], 1, MOST_NOISE_LEVELS) for key in _WHOLE if key in given}
    found |= {key: true_or_false(source, key, given[key]) for key in _FLAGS if key in given}
    chosen = {key: true_or_false(source, key, given[key]) for key in (*_SPACINGS, "use_lu_lambdas") if key in given}
    spacings = [word for key, word in _SPACINGS.items() if chosen.get(key)]
    if len(spacings) > 1:
        raise InputError(f"{source}: asks for {' and '.join(spacings)} sigmas; expected one of them")
    if chosen:
        found["sigma_spacing"] = (spacings or ["lu" if chosen.get("use_lu_lambdas") else ""])[0]
    lowest = given.get("lambda_min_clipped")
    if lowest is not None and lowest != -math.inf:
        found["lambda_min_clipped"] = finite_number(source, "lambda_min_clipped", lowest, -math.inf)
    if "disable_corrector" in given:
        steps = given["disable_corrector"]
        if not isinstance(steps, (list, tuple)):
            raise InputError(f"{source}: disable_corrector is {shown(steps)}; expected a list of steps")
        found["disable_corrector"] = tuple(
            whole_number(source, "disable_corrector", step, 0, MOST_NOISE_LEVELS) for step in steps
        )
    if given.get("solver_p"):
        raise InputError(f"{source}: solver_p is set; only null is supported")
    return SolverOptions(**found)


def _steps_offset(json: Mapping[str, Any], name: str, source: str) -> int | None:
    value = json.get("steps_offset")
    if value is not None:
        whole_number(source, "steps_offset", value, 0, MOST_NOISE_LEVELS)
    if value != 1 and not (value is None and name in _WITHOUT_OFFSET):
        found = "missing" if value is None else value
        logging.info("%s: steps_offset is %s; taken as 1, as by Diffusers' pipeline", source, found)
    return 1 if "steps_offset" in json else None


def _clip_sample(json: Mapping[str, Any], value: bool | None, name: str, source: str) -> bool | None:
    if value or (value is None and name in _CLIPS):
        found = "missing" if value is None else "true"
        logging.info("%s: clip_sample is %s; taken as false, as by Diffusers' pipeline", source, found)
    return None if value is None else False


def schedule_to_diffusers(config: ScheduleConfig) -> dict[str, Any]:
    """The `scheduler_config.json` of Diffusers' `PNDMScheduler` or, where PNDM isn't defined, `DDIMScheduler`."""
    sampler = "ddim" if config.zero_snr or config.prediction_type == "sample" else "pndm"
    config = config.for_sampler(sampler)
    json = {
        "_class_name": next(name for name in _IN_FLAX if SCHEDULERS[name].sampler == sampler),
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "beta_start": config.beta_start,
        "clip_sample": False,
        "num_train_timesteps": config.train_steps,
        "prediction_type": config.prediction_type,
        "set_alpha_to_one": config.set_alpha_to_one,
        "skip_prk_steps": True,
        "steps_offset": 1,
        "timestep_spacing": config.timestep_spacing,
        "trained_betas": None if config.trained_betas is None else list(config.trained_betas),
    }
    return json | ({"rescale_betas_zero_snr": True} if config.zero_snr else {})


def scheduler_to_write(json: Mapping[str, Any], schedule: ScheduleConfig, flax: bool) -> dict[str, Any]:
    """The `scheduler_config.json` of a copy of a model, for PyTorch or, if `flax`, for Diffusers' Flax classes.

    It states what Diffusers' pipeline sets anyway (`steps_offset`, `clip_sample`), so that other samplers made from it
    have it too. For Flax, other classes than DDIM and PNDM become `FlaxPNDMScheduler`, with a log line.

    Args:
        json: the model's own file.
        schedule: as read from it.
        flax: for which classes.
    """
    json = dict(json) | {"clip_sample": False, "steps_offset": 1}
    name = str(json.get("_class_name") or _DEFAULT).removeprefix("Flax")
    if flax and name not in _IN_FLAX:
        json = schedule_to_diffusers(schedule)
        logging.info("scheduler: %s doesn't work in Flax; written as Flax%s", name, json["_class_name"])
        name = json["_class_name"]
    return json | {"_class_name": f"{'Flax' if flax else ''}{name}"}


def require_flax_schedule(schedule: ScheduleConfig) -> None:
    """Raises `InputError` if Diffusers' Flax schedulers, which have fewer options, would sample otherwise."""
    spacing = schedule.timestep_spacing
    if schedule.zero_snr or spacing not in (None, "leading"):
        found = "zero terminal SNR" if schedule.zero_snr else f"timestep_spacing {spacing}"
        raise InputError(f"format: flax has no schedulers for {found}; write it with format safetensors")


def _trained_betas(betas: Any, train_steps: int, source: str) -> tuple[float, ...] | None:
    if betas is None:
        return None
    if not isinstance(betas, (list, tuple)) or len(betas) != train_steps:
        raise InputError(f"{source}: trained_betas must be null or a list of {train_steps} numbers")
    return tuple(finite_number(source, "trained_betas", beta, 0, MOST_BETA) for beta in betas)
