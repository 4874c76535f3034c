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
SIGMA_SPACINGS = ("karras", "exponential", "beta", "lu")
_EULER = {"steps_offset": 0, "timestep_spacing": "linspace"}
_SIGMAS = {"sigma_spacing": ""}
_MULTISTEP = _EULER | _SIGMAS | {"solver_order": 2, "final_sigmas_type": "zero", "lower_order_final": True}
_OPEN: dict[str, dict[str, Any]] = {
    "ddim": {"steps_offset": 0, "set_alpha_to_one": True, "timestep_spacing": "leading", "clip_sample": True},
    "ddpm": {"steps_offset": 0, "timestep_spacing": "leading", "clip_sample": True, "variance_type": "fixed_small"},
    "pndm": {
        "steps_offset": 0,
        "set_alpha_to_one": False,
        "timestep_spacing": "leading",
        "skip_prk_steps": False,
    },
    "euler": _EULER
    | _SIGMAS
    | {
        "final_sigmas_type": "zero",
        "interpolation_type": "linear",
        "timestep_type": "discrete",
        "sigma_min": None,
        "sigma_max": None,
    },
    "euler_ancestral": _EULER,
    "heun": _EULER | _SIGMAS | {"clip_sample": False},
    "dpmpp": _MULTISTEP
    | {
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "euler_at_final": False,
        "lambda_min_clipped": None,
    },
    "unipc": _MULTISTEP
    | {
        "solver_type": "bh2",
        "predict_x0": True,
        "disable_corrector": (),
        "sigma_min": None,
        "sigma_max": None,
    },
    "lcm": {"clip_sample": False, "original_inference_steps": 50, "timestep_scaling": 10.0},
}
"""Sampler -> the options of its class in Diffusers, with their defaults."""
_PIPELINE = {"steps_offset": 1, "clip_sample": False}
"""What Diffusers' StableDiffusionPipeline sets, whatever the model's scheduler file says."""
RESCALING = ("ddim", "ddpm", "euler", "euler_ancestral", "dpmpp", "unipc", "lcm")
"""Samplers whose class has `rescale_betas_zero_snr`."""


@dataclasses.dataclass(frozen=True)
class SolverOptions:
    """Options of single samplers, named as in Diffusers. None: the model leaves it open, or the sampler has none.

    Attributes:
        variance_type: of DDPM's noise: `fixed_small`, `fixed_small_log`, or `fixed_large`.
        solver_order: of the multi-step solvers, 1 to 3.
        algorithm_type: `dpmsolver++` or `sde-dpmsolver++`.
        solver_type: `midpoint` or `heun` for DPM-Solver++, `bh1` or `bh2` for UniPC.
        lower_order_final: the last steps of the multi-step solvers have a lower order.
        euler_at_final: the last step of DPM-Solver++ has order 1.
        sigma_spacing: one of `SIGMA_SPACINGS`, empty: as the timesteps; Diffusers' `use_karras_sigmas` and the like.
        sigma_min, sigma_max: ends of that spacing; None: those of the schedule.
        final_sigmas_type: the level after the last step, `zero` or `sigma_min`.
        lambda_min_clipped: smallest half log SNR that DPM-Solver++ begins from.
        interpolation_type: of Euler's levels, `linear` or `log_linear`.
        timestep_type: of Euler's timesteps for velocity models, `discrete` or `continuous`.
        predict_x0: UniPC works on estimates of z_0; only true is implemented.
        disable_corrector: steps after which UniPC doesn't correct.
        original_inference_steps, timestep_scaling: of LCM's training.
    """

    variance_type: str | None = None
    solver_order: int | None = None
    algorithm_type: str | None = None
    solver_type: str | None = None
    lower_order_final: bool | None = None
    euler_at_final: bool | None = None
    sigma_spacing: str | None = None
    sigma_min: float | None = None
    sigma_max: float | None = None
    final_sigmas_type: str | None = None
    lambda_min_clipped: float | None = None
    interpolation_type: str | None = None
    timestep_type: str | None = None
    predict_x0: bool | None = None
    disable_corrector: tuple[int, ...] | None = None
    original_inference_steps: int | None = None
    timestep_scaling: float | None = None


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """A scheduler's configuration. Defaults are Stable Diffusion's; None: the model leaves it open (`for_sampler`).

    Attributes:
        train_steps: number of noise levels T; timesteps are 0 .. T-1.
        trained_betas: the betas themselves, instead of the other beta settings.
        zero_snr: the noise levels are rescaled to abar_{T-1} = 0 (Lin et al. 2023, algorithm 1).
        prediction_type: what the network predicts, a key of `TARGETS`.
        sampler: the sampler that the model names; empty: one that isn't implemented.
        steps_offset: added to every timestep of spacing `leading`.
        set_alpha_to_one: abar after the last step is 1 rather than abar_0.
        timestep_spacing: one of `SPACINGS`.
        clip_sample, clip_sample_range: whether the sampler clips its estimate of z_0, and to which absolute value.
        skip_prk_steps: PNDM begins without Runge-Kutta steps.
        solver: options of single samplers.
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
    solver: SolverOptions = SolverOptions()

    def betas(self) -> np.ndarray:
        """float64 [T], before rescaling to zero terminal SNR."""
        if self.trained_betas is not None:
            return np.asarray(self.trained_betas, np.float64)
        return BETAS[self.beta_schedule](self.beta_start, self.beta_end, self.train_steps)

    def alphas_cumprod(self) -> np.ndarray:
        """abar_t for t = 0 .. T-1; float64 [T], decreasing, in (0, 1); the last is 0 if `zero_snr`."""
        levels = np.cumprod(1.0 - self.betas())
        if not self.zero_snr:
            return levels
        signal = np.sqrt(levels)
        return np.square((signal - signal[-1]) * signal[0] / (signal[0] - signal[-1]))

    def for_sampler(self, sampler: str) -> "ScheduleConfig":
        """A copy for `sampler`, with every option that it has: a sampler that the model doesn't name takes what the
        model leaves open from its own class in Diffusers, as `from_config` does; the model's own is corrected as by
        Diffusers' pipeline. Options that the class hasn't become None or, of `clip_sample`, False.
        """
        defaults = _OPEN[sampler]
        filled = {"clip_sample": False} | defaults
        if sampler == self.sampler:
            filled |= {key: value for key, value in _PIPELINE.items() if key in defaults}
        ours = {key: vars(self)[key] for key in _SHARED if key in defaults}
        ours |= {key: vars(self.solver)[key] for key in defaults if key not in _SHARED}
        filled |= {key: value for key, value in ours.items() if value is not None}
        shared = {key: filled.get(key) for key in _SHARED}
        solver = SolverOptions(**{key: value for key, value in filled.items() if key not in _SHARED})
        return dataclasses.replace(self, **shared, solver=solver)


_SHARED = ("steps_offset", "set_alpha_to_one", "timestep_spacing", "clip_sample", "skip_prk_steps")


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
    "sample": lambda latents, noise, alpha_bar: latents,
}
"""prediction type -> (latents, noise, abar) -> the training target."""
