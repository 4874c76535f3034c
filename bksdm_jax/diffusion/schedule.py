"""The noise schedule, z_t = sqrt(abar_t) z_0 + sqrt(1 - abar_t) eps, and the training targets."""

import dataclasses
import math
from collections.abc import Callable

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


@dataclasses.dataclass(frozen=True)
class ScheduleConfig:
    """A scheduler's configuration. Defaults are Stable Diffusion's.

    Attributes:
        train_steps: number of noise levels T; timesteps are 0 .. T-1.
        prediction_type: what the network predicts, `epsilon` or `v_prediction`.
        set_alpha_to_one: abar after the last step is 1 rather than abar_0.
        clip_range: DDIM clips its estimate of z_0 to this absolute value; None: no clipping.
        trained_betas: the betas themselves, instead of the other beta settings.
    """

    train_steps: int = 1000
    beta_start: float = 0.00085
    beta_end: float = 0.012
    beta_schedule: str = "scaled_linear"
    trained_betas: tuple[float, ...] | None = None
    prediction_type: str = "epsilon"
    steps_offset: int = 1
    set_alpha_to_one: bool = False
    timestep_spacing: str = "leading"
    clip_range: float | None = None

    def alphas_cumprod(self) -> np.ndarray:
        """abar_t for t = 0 .. T-1; float64 [T], decreasing, in (0, 1)."""
        if self.trained_betas is not None:
            betas = np.asarray(self.trained_betas, np.float64)
        else:
            betas = BETAS[self.beta_schedule](self.beta_start, self.beta_end, self.train_steps)
        return np.cumprod(1.0 - betas)


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
