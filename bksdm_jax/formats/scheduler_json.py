"""`ScheduleConfig` to and from `scheduler_config.json`."""

import math
from collections.abc import Mapping
from typing import Any

from bksdm_jax.base.errors import InputError, finite_number, known_name, true_or_false, whole_number
from bksdm_jax.diffusion.schedule import BETAS, MOST_BETA, SPACINGS, TARGETS, ScheduleConfig
from bksdm_jax.formats.limits import MOST_NOISE_LEVELS


def schedule_from_diffusers(json: Mapping[str, Any], source: str = "scheduler_config.json") -> ScheduleConfig:
    """Reads a `scheduler_config.json`; missing keys take the defaults of the Diffusers class that the file names.

    Raises `InputError` for unsupported schedules and prediction types, and invalid values.
    """
    name = json.get("_class_name", "PNDMScheduler")
    if not isinstance(name, str):
        raise InputError(f"{source}: _class_name is {name!r}; expected the name of a scheduler")
    ddim = name.removeprefix("Flax") == "DDIMScheduler"

    def number(key: str, default: float, most: float = math.inf) -> float:
        return finite_number(source, key, json.get(key, default), 0, most)

    def flag(key: str, default: bool) -> bool:
        return true_or_false(source, key, json.get(key, default))

    for key in ("thresholding", "rescale_betas_zero_snr"):
        if flag(key, False):
            raise InputError(f"{source}: {key} is true; only false is supported")
    train_steps = whole_number(
        source, "num_train_timesteps", json.get("num_train_timesteps", 1000), 1, MOST_NOISE_LEVELS
    )
    return ScheduleConfig(
        train_steps=train_steps,
        beta_start=number("beta_start", 0.0001, MOST_BETA),
        beta_end=number("beta_end", 0.02, MOST_BETA),
        beta_schedule=known_name(source, "beta_schedule", json.get("beta_schedule", "linear"), BETAS),
        trained_betas=_trained_betas(json.get("trained_betas"), train_steps, source),
        prediction_type=known_name(source, "prediction_type", json.get("prediction_type", "epsilon"), TARGETS),
        steps_offset=whole_number(source, "steps_offset", json.get("steps_offset", 0), 0, MOST_NOISE_LEVELS),
        set_alpha_to_one=flag("set_alpha_to_one", ddim),
        timestep_spacing=known_name(source, "timestep_spacing", json.get("timestep_spacing", "leading"), SPACINGS),
        clip_range=number("clip_sample_range", 1.0) if flag("clip_sample", ddim) else None,
    )


def schedule_to_diffusers(config: ScheduleConfig) -> dict[str, Any]:
    """The `scheduler_config.json` of Diffusers' `PNDMScheduler`; a clipping range isn't written."""
    return {
        "_class_name": "PNDMScheduler",
        "beta_end": config.beta_end,
        "beta_schedule": config.beta_schedule,
        "beta_start": config.beta_start,
        "num_train_timesteps": config.train_steps,
        "prediction_type": config.prediction_type,
        "set_alpha_to_one": config.set_alpha_to_one,
        "skip_prk_steps": True,
        "steps_offset": config.steps_offset,
        "timestep_spacing": config.timestep_spacing,
        "trained_betas": None if config.trained_betas is None else list(config.trained_betas),
    }


def _trained_betas(betas: Any, train_steps: int, source: str) -> tuple[float, ...] | None:
    if betas is None:
        return None
    if not isinstance(betas, (list, tuple)) or len(betas) != train_steps:
        raise InputError(f"{source}: trained_betas must be null or a list of {train_steps} numbers")
    return tuple(finite_number(source, "trained_betas", beta, 0, MOST_BETA) for beta in betas)
