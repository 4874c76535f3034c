"""What a sampler's steps are written in: linear forms in place of tensors.

`x`, `out` (the network's output), `start` (the estimate of z_0) and `noise` are unit vectors, so a step written as in
its paper gives the coefficients of its result.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.schedule import ScheduleConfig

Form = np.ndarray
"""Coefficients [K + 3] of the K slots (the first are the latents), the output, the estimate of z_0, and noise."""


@dataclasses.dataclass(frozen=True)
class Run:
    """What is to be sampled.

    Attributes:
        schedule: with every option of the sampler.
        steps: as asked for.
        begin: how many of Diffusers' timesteps are left out at the start (of Heun's method: how many steps).
        eta: of DDIM.
    """

    schedule: ScheduleConfig
    steps: int
    begin: int = 0
    eta: float = 0.0


@dataclasses.dataclass(frozen=True)
class Step:
    """A call of the network and the step after it.

    Attributes:
        timestep: of the call.
        levels: signal and deviation of the latents there.
        slots: the slots after the step, K forms.
        number: of the step that the call belongs to; None: its own.
    """

    timestep: float
    levels: tuple[float, float]
    slots: Sequence[Form]
    number: int | None = None


def units(slots: int) -> tuple[list[Form], Form, Form, Form]:
    """Unit forms: the slots; output; estimate of z_0; noise."""
    *first, out, start, noise = np.eye(slots + 3)
    return first, out, start, noise


def estimate(prediction_type: str, signal: float, deviation: float) -> tuple[float, float]:
    """Coefficients of latents and output in the estimate of z_0, for latents signal z_0 + deviation eps."""
    if prediction_type == "sample":
        return 0.0, 1.0
    if prediction_type == "v_prediction":  # of the latents divided by their own deviation
        total = np.hypot(signal, deviation)
        return signal / total**2, -deviation / total
    return 1 / signal, -deviation / signal


def noise_form(prediction_type: str, abar: float, x: Form, out: Form) -> Form:
    """The noise that the output predicts."""
    if prediction_type == "epsilon":
        return out
    if prediction_type == "v_prediction":
        return np.sqrt(abar) * out + np.sqrt(1 - abar) * x
    return (x - np.sqrt(abar) * out) / np.sqrt(1 - abar)


class AlphaBar:
    """abar at timesteps; at negative ones, which come after the last step, it is `final`."""

    def __init__(self, schedule: ScheduleConfig, final: float | None = None) -> None:
        self._every = schedule.alphas_cumprod()
        self._final = (1.0 if schedule.set_alpha_to_one else self._every[0]) if final is None else final

    def __call__(self, at: float) -> float:
        """Raises `InputError` beyond the last timestep."""
        at = int(at)
        if at >= len(self._every):
            raise InputError(f"steps: a step goes to timestep {at}; the largest is {len(self._every) - 1}")
        return float(self._every[at]) if at >= 0 else self._final

    def levels(self, at: float) -> tuple[float, float]:
        """Signal and deviation, sqrt(abar) and sqrt(1 - abar)."""
        here = self(at)
        return np.sqrt(here), np.sqrt(1 - here)
