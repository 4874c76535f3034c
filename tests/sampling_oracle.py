"""Sampling by Diffusers' schedulers, as their pipelines use them, with noise that is given."""

import functools
import importlib
import itertools
import warnings
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import diffusers
import numpy as np
import scipy.stats
import torch
from diffusers import StableDiffusionPipeline

from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.diffusion.solver import Calls
from tests.arrays import stand_in

_quantile = functools.cache(scipy.stats.beta.ppf)  # half of the time otherwise


def scheduler_of(file: dict[str, Any]) -> Any:
    """Diffusers' scheduler as its pipeline has it."""
    warnings.filterwarnings("ignore", category=FutureWarning)  # what it corrects in the file
    with mock.patch.object(scipy.stats.beta, "ppf", _quantile):
        scheduler = getattr(diffusers, file["_class_name"]).from_config(file)
    others = dict.fromkeys(("vae", "text_encoder", "tokenizer", "unet", "safety_checker", "feature_extractor"))
    return StableDiffusionPipeline(scheduler=scheduler, requires_safety_checker=False, **others).scheduler


def sample(
    scheduler: Any,
    steps: int,
    noise: np.ndarray,
    added: np.ndarray,
    eta: float = 0.0,
    strength: float | None = None,
    latents: np.ndarray | None = None,
) -> np.ndarray:
    """Latents [B, H, W, C] from `noise`, with `stand_in` for the network.

    `added` [N, B, H, W, C] is the noise of the calls; with `strength` the run begins from `latents`.
    """
    with mock.patch.object(scipy.stats.beta, "ppf", _quantile):
        scheduler.set_timesteps(steps)
    timesteps, x = scheduler.timesteps, torch.from_numpy(noise)
    if strength is None:
        x = x * scheduler.init_noise_sigma
    else:
        begin = max(steps - min(int(steps * strength), steps), 0) * scheduler.order
        timesteps = timesteps[begin:]
        if hasattr(scheduler, "set_begin_index"):
            scheduler.set_begin_index(begin)
        x = scheduler.add_noise(torch.from_numpy(latents), x, timesteps[:1].repeat(len(x)))
    options = {"eta": eta} if eta else {}
    with mock.patch.object(importlib.import_module(type(scheduler).__module__), "randn_tensor", create=True) as drawn:
        for i, t in enumerate(timesteps):
            drawn.side_effect = lambda *_, i=i, **__: torch.from_numpy(added[i])
            out = stand_in(scheduler.scale_model_input(x, t), t, torch)
            x = scheduler.step(out, t, x, **options).prev_sample
    return x.numpy()


def rounding(schedule: ScheduleConfig, calls: Calls) -> float:
    """By how much Diffusers' float32 may be off, for latents of some units: it divides by sqrt(abar) and 1 - abar."""
    last = schedule.train_steps - 1
    solver = schedule.solver
    spread = solver.sigma_spacing or solver.interpolation_type == "log_linear"  # from the levels at both ends
    ends = [0, last] if spread else [last] if calls.weights.shape[1] == 6 else []  # PNDM may go back to the noisiest
    at = np.append(calls.timesteps, ends)
    abar = schedule.alphas_cumprod()[np.clip(at, 0, last).astype(int)]
    abar = np.clip(abar, 1e-10, 1 - 1e-10)
    worst = max((1 / np.sqrt(abar[abar > 1e-10])).max(initial=1), (1 / (1 - abar)).max())
    return 4 * np.finfo(np.float32).eps * float(worst)


def require_close(ours: np.ndarray, theirs: np.ndarray, largest: float, schedule: ScheduleConfig, calls: Calls) -> None:
    """Equal within 1e-4 of the largest number and the rounding of theirs; `largest` is that on the way."""
    allowed = 1e-4 * np.abs(theirs).max() + 4 * np.finfo(np.float32).eps * largest + rounding(schedule, calls)
    assert np.abs(ours - theirs).max() <= allowed, (np.abs(ours - theirs).max(), allowed)


def covering(options: dict[str, list[Any]], together: int) -> Iterator[dict[str, Any]]:
    """Choices of one value per option, such that all values of any `together` options occur with each other."""
    names = list(options)

    def tuples(choice: dict[str, int]) -> set[tuple[tuple[str, int], ...]]:
        return set(itertools.combinations([(name, choice[name]) for name in names if name in choice], together))

    missing = {
        tuple(zip(some, values, strict=True))
        for some in itertools.combinations(names, together)
        for values in itertools.product(*(range(len(options[name])) for name in some))
    }
    while missing:
        choice = dict(min(missing))
        for name in names:
            if name not in choice:
                counts = [len(tuples(choice | {name: index}) & missing) for index in range(len(options[name]))]
                choice[name] = counts.index(max(counts))
        missing -= tuples(choice)
        yield {name: options[name][choice[name]] for name in names}


def in_numpy(
    calls: Calls,
    noise: np.ndarray,
    added: np.ndarray,
    latents: np.ndarray | None = None,
    network: Callable[[np.ndarray, float], np.ndarray] = lambda x, t: stand_in(x, t, np),
) -> tuple[np.ndarray, float]:
    """What `solver.solve` computes, in float64; and the largest number on the way."""
    signal, deviation = (0.0, calls.deviation) if latents is None else calls.levels
    slots = np.zeros((calls.weights.shape[1], *noise.shape))
    slots[0] = deviation * noise + (0.0 if latents is None else signal * latents)
    largest = np.abs(slots[0]).max()
    for i in range(len(calls)):
        out = network(calls.scales[i] * slots[0], calls.timesteps[i])
        start = calls.starts[i, 0] * slots[0] + calls.starts[i, 1] * out
        start = start if calls.clip is None else np.clip(start, -calls.clip, calls.clip)
        slots = np.tensordot(calls.weights[i], np.concatenate([slots, [out, start, added[i]]]), axes=1)
        largest = max(largest, np.abs(slots[0]).max())
    return slots[0], largest
