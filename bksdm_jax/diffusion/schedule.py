"""The noise schedule, z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps, and the training targets."""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np


def _cosine_betas(start: float, end: float, count: int) -> np.ndarray:
    """Nichol and Dhariwal 2021, equation 17, betas capped at 0.999 (`squaredcos_cap_v2`)."""
    del start, end

    def bar(time: float) -> float:
        return math.cos((time + 0.008) / 1.008 * math.pi / 2) ** 2

    return np.array([min(1 - bar((i + 1) / count) / bar(i / count), 0.999) for i in range(count)])


BETAS: dict[str, Callable[[float, float, int], np.ndarray]] = {
    "linear": np.linspace,
    "scaled_linear": lambda start, end, count: np.linspace(start**0.5, end**0.5, count) ** 2,
    "squaredcos_cap_v2": _cosine_betas,
}
MOST_BETA = 0.9999  # at 1 abar would be 0
SPACINGS = ("leading", "trailing", "linspace")
_OPEN: dict[str, dict[str, Any]] = {
    "pndm": {
        "steps_offset": 0,
        "set_alpha_to_one": False,
        "timestep_spacing": "leading",
        "clip_sample": False,
        "skip_prk_steps": False,
    },
    "ddim": {
        "steps_offset": 0,
        "set_alpha_to_one": True,
        "timestep_spacing": "leading",
        "clip_sample": True,
        "skip_prk_steps": True,
    },
}
"""Sampler -> defaults of its class in Diffusers."""
_PIPELINE = {"steps_offset": 1, "clip_sample": False}
"""What Diffusers' StableDiffusionPipeline sets, whatever the model's scheduler file says."""


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """A scheduler's configuration. Defaults are Stable Diffusion's; None: the model leaves it open (`for_sampler`).

    Attributes:
        train_steps: number of noise levels T; timesteps are 0 .. T-1.
        trained_betas: the betas themselves, instead of the other beta settings.
        zero_snr: the noise levels are rescaled to abar_{T-1} = 0 (Lin et al. 2023, algorithm 1).
        prediction_type: what the network predicts, `epsilon` or `v_prediction`.
        sampler: the sampler that the model names, a key of `SAMPLERS`; empty: one that isn't implemented.
        steps_offset: added to every timestep of spacing `leading`.
        set_alpha_to_one: abar after the last step is 1 rather than abar_0.
        timestep_spacing: one of `SPACINGS`.
        clip_sample, clip_sample_range: whether DDIM clips its estimate of z_0, and to which absolute value.
        skip_prk_steps: PNDM begins without Runge-Kutta steps.
    """

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    trained_betas: tuple[float, ...] | None = None
    zero_snr: bool = False
    prediction_type: str = "epsilon"
    sampler: str = "pndm"
    steps_offset: int | None = 1
    set_alpha_to_one: bool | None = False
    timestep_spacing: str | None = "leading"
    clip_sample: bool | None = False
    clip_sample_range: float = 1.0
    skip_prk_steps: bool | None = True

    def alphas_cumprod(self) -> np.ndarray:
        """abar_t for t = 0 .. T-1; float64 [T], decreasing, in (0, 1); the last is 0 if `zero_snr`."""
        if self.trained_betas is not None:
            betas = np.asarray(self.trained_betas, np.float64)
        else:
            betas = BETAS[self.beta_schedule](self.beta_start, self.beta_end, self.train_steps)
        levels = np.cumprod(1.0 - betas)
        if not self.zero_snr:
            return levels
        signal = np.sqrt(levels)
        return np.square((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1]))

    def for_sampler(self, sampler: str) -> "ScheduleConfig":
        """A copy for `sampler`, without None: a sampler that the model doesn't name takes what the model leaves open
        from its own class in Diffusers, as `from_config` does; the model's own is corrected as by Diffusers' pipeline.
        """
        open_values = _OPEN[sampler] | (_PIPELINE if sampler == self.sampler else {})
        return dataclasses.replace(
            self, **{key: value for key, value in open_values.items() if vars(self)[key] is None}
        )


def add_noise(latents: jax.Array, noise: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """z_t: `latents` and `noise` float32 [B, H, W, C], `alpha_bar` [B]."""
    alpha_bar = alpha_bar[:, None, None, None]
    return jnp.sqrt(alpha_bar) * latents + jnp.sqrt(1.0 - alpha_bar) * noise


def velocity(latents: jax.Array, noise: jax.Array, alpha_bar: jax.Array) -> jax.Array:
    """v = sqrt(abar) eps - sqrt(1 - abar) z_0 (Salimans and Ho 2022, appendix D); shapes as in `add_noise`."""
    alpha_bar = alpha_bar[:, None, None, None]
    return jnp.sqrt(alpha_bar) * noise - jnp.sqrt(1.0 - alpha_bar) * latents


TARGETS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "epsilon": lambda latents, noise, alpha_bar: noise,
    "v_prediction": velocity,
}
"""prediction type -> (latents, noise, abar) -> the training target."""
