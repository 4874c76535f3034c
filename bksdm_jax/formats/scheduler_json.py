"""`ScheduleConfig` to and from `scheduler_config.json`, as Diffusers' StableDiffusionPipeline reads it."""

import dataclasses
import math
from collections.abc import Mapping
from typing import Any

import numpy as np
from absl import logging

from bksdm_jax.base.errors import InputError, finite_number, known_name, shown, true_or_false, whole_number
from bksdm_jax.diffusion.schedule import BETAS, MOST_BETA, SPACINGS, TARGETS, ScheduleConfig
from bksdm_jax.formats.limits import MOST_NOISE_LEVELS


@dataclasses.dataclass(frozen=True)
class _Scheduler:
    """A class of Diffusers with Stable Diffusion's kind of noise levels.

    Attributes:
        sampler: the key of `SAMPLERS`; empty: not implemented, so that a sampler must be named.
        betas: defaults of `beta_start` and `beta_end`.
        in_flax: whether Diffusers has a Flax class of this name.
    """

    sampler: str = ""
    betas: tuple[float, float] = (0.0001, 0.02)
    in_flax: bool = False


_KARRAS = _Scheduler(betas=(0.00085, 0.012))
_DEFAULT = "PNDMScheduler"
SCHEDULERS = {
    "DDIMParallelScheduler": _Scheduler("ddim"),
    "DDIMScheduler": _Scheduler("ddim", in_flax=True),
    "DDPMParallelScheduler": _Scheduler(),
    "DDPMScheduler": _Scheduler(in_flax=True),
    "DEISMultistepScheduler": _Scheduler(),
    "DPMSolverMultistepScheduler": _Scheduler(in_flax=True),
    "DPMSolverSDEScheduler": _KARRAS,
    "DPMSolverSinglestepScheduler": _Scheduler(),
    "EulerAncestralDiscreteScheduler": _Scheduler(),
    "EulerDiscreteScheduler": _Scheduler(in_flax=True),
    "HeunDiscreteScheduler": _KARRAS,
    "KDPM2AncestralDiscreteScheduler": _KARRAS,
    "KDPM2DiscreteScheduler": _KARRAS,
    "LMSDiscreteScheduler": _Scheduler(in_flax=True),
    _DEFAULT: _Scheduler("pndm", in_flax=True),
    "SASolverScheduler": _Scheduler(),
    "UniPCMultistepScheduler": _Scheduler(),
}
_WITHOUT_OFFSET = ("DPMSolverSinglestepScheduler",)
_CLIPS = ("DDIMParallelScheduler", "DDIMScheduler", "DDPMParallelScheduler", "DDPMScheduler")  # unless told not to


def schedule_from_diffusers(
    json: Mapping[str, Any], source: str = "scheduler_config.json", class_name: str = ""
) -> ScheduleConfig:
    """Reads a `scheduler_config.json`.

    Missing keys take the defaults of the Diffusers class. `StableDiffusionPipeline` sets `steps_offset` to 1 and
    `clip_sample` to false whatever the file says; so does this function, with a log line for each.

    Args:
        json: the file's content.
        source: its name, for errors.
        class_name: Diffusers' class; empty: the one that the file names, PNDM if none.

    Raises:
        InputError: a class that isn't of Stable Diffusion's kind, an unsupported or invalid value.
    """
    name = class_name or json.get("_class_name") or _DEFAULT
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

    def flag(key: str, default: bool | None) -> Any:
        value = json.get(key, default)
        return value if value is None and default is None else true_or_false(source, key, value)

    for key in ("thresholding", "use_flow_sigmas"):
        if flag(key, False):
            raise InputError(f"{source}: {key} is true; only false is supported")
    predicts = known_name(source, "prediction_type", json.get("prediction_type", "epsilon"), TARGETS)
    zero_snr = flag("rescale_betas_zero_snr", False)
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
        beta_schedule=known_name(source, "beta_schedule", json.get("beta_schedule", "linear"), BETAS),
        trained_betas=_trained_betas(json.get("trained_betas"), train_steps, source),
        zero_snr=zero_snr,
        prediction_type=predicts,
        sampler=scheduler.sampler,
        steps_offset=_steps_offset(json, bare, source),
        set_alpha_to_one=flag("set_alpha_to_one", None),
        timestep_spacing=None if spacing is None else known_name(source, "timestep_spacing", spacing, SPACINGS),
        clip_sample=_clip_sample(json, flag("clip_sample", None), bare, source),
        clip_sample_range=number("clip_sample_range", 1.0),
        skip_prk_steps=flag("skip_prk_steps", None),
    )
    if zero_snr and not np.ptp(config.alphas_cumprod()) > 0:  # also if NaN
        raise InputError(f"{source}: rescale_betas_zero_snr is true, but all noise levels are equal")
    return config


def _steps_offset(json: Mapping[str, Any], name: str, source: str) -> int | None:
    value = json.get("steps_offset")
    if value is not None:
        whole_number(source, "steps_offset", value, 0, MOST_NOISE_LEVELS)
    if value != 1 and not (value is None and name in _WITHOUT_OFFSET):
        found = "missing" if value is None else value
        logging.info("%s: steps_offset is %s; taken as 1, as by Diffusers' pipeline", source, found)
    return None if value is None else 1


def _clip_sample(json: Mapping[str, Any], value: bool | None, name: str, source: str) -> bool | None:
    if value or (value is None and name in _CLIPS):
        found = "missing" if value is None else "true"
        logging.info("%s: clip_sample is %s; taken as false, as by Diffusers' pipeline", source, found)
    return None if value is None else False


def schedule_to_diffusers(config: ScheduleConfig) -> dict[str, Any]:
    """The `scheduler_config.json` of Diffusers' `PNDMScheduler` or, for zero terminal SNR, `DDIMScheduler`."""
    sampler = "ddim" if config.zero_snr else "pndm"
    config = config.for_sampler(sampler)
    json = {
        "_class_name": next(name for name, found in SCHEDULERS.items() if found.in_flax and found.sampler == sampler),
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
    have it too. A class that doesn't exist in Flax becomes `FlaxPNDMScheduler`, with a log line.

    Args:
        json: the model's own file.
        schedule: as read from it.
        flax: for which classes.
    """
    json = dict(json) | {"clip_sample": False, "steps_offset": 1}
    name = str(json.get("_class_name") or _DEFAULT).removeprefix("Flax")
    if flax and not SCHEDULERS[name].in_flax:
        json = schedule_to_diffusers(schedule)
        logging.info("scheduler: Diffusers has no Flax%s; written as Flax%s", name, json["_class_name"])
        name = json["_class_name"]
    return json | {"_class_name": f"{'Flax' if flax else ''}{name}"}


def _trained_betas(betas: Any, train_steps: int, source: str) -> tuple[float, ...] | None:
    if betas is None:
        return None
    if not isinstance(betas, (list, tuple)) or len(betas) != train_steps:
        raise InputError(f"{source}: trained_betas must be null or a list of {train_steps} numbers")
    return tuple(finite_number(source, "trained_betas", beta, 0, MOST_BETA) for beta in betas)
