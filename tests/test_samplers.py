"""PNDM, DDIM and guidance against Diffusers' schedulers and against formulas."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler

from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.noise import as_noise, image_keys
from bksdm_jax.diffusion.samplers import (
    SAMPLERS,
    PNDMState,
    ddim,
    ddim_step,
    guided,
    pndm,
    pndm_calls,
    pndm_step,
    timesteps,
)
from bksdm_jax.diffusion.schedule import SPACINGS, ScheduleConfig
from bksdm_jax.formats.scheduler_json import schedule_from_diffusers
from bksdm_jax.sampling.text_to_image import starting_noise
from tests import tiny
from tests.arrays import stand_in

SCHEDULERS = {
    "pndm": lambda **options: PNDMScheduler(**options, skip_prk_steps=True),
    "ddim": lambda **options: DDIMScheduler(**options, clip_sample=False),
}


def predict(x: jax.Array, t: jax.Array) -> jax.Array:
    return stand_in(x, t.astype(jnp.float32), jnp)


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng().standard_normal(shape, np.float32)


def require_close(ours: Any, theirs: Any) -> None:
    assert np.abs(np.asarray(ours) - np.asarray(theirs)).max() <= 1e-5 * np.abs(np.asarray(theirs)).max()


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("name", SAMPLERS)
@pytest.mark.parametrize(
    ("spacing", "steps"), [*((spacing, 25) for spacing in SPACINGS), ("leading", 1), ("leading", 7)]
)
def test_latents_match_diffusers(name: str, prediction: str, spacing: str, steps: int) -> None:
    scheduler = SCHEDULERS[name](
        **tiny.SD_BETAS,
        prediction_type=prediction,
        timestep_spacing=spacing,
        steps_offset=1,
        set_alpha_to_one=False,
    )
    scheduler.set_timesteps(steps)
    noise = normal(2, 8, 8, 4)
    theirs = torch.from_numpy(noise)
    for t in scheduler.timesteps:
        theirs = scheduler.step(stand_in(theirs, t, torch), t, theirs).prev_sample
    schedule = schedule_from_diffusers(scheduler.config)
    require_close(jax.jit(lambda x: SAMPLERS[name](predict, x, schedule, steps))(noise), theirs)


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
@pytest.mark.parametrize("eta", [0.4, 1.0])
def test_stochastic_ddim_matches_diffusers(eta: float, prediction: str) -> None:
    scheduler = DDIMScheduler(
        **tiny.SD_BETAS, prediction_type=prediction, steps_offset=1, set_alpha_to_one=False, clip_sample=False
    )
    scheduler.set_timesteps(6)
    noise, added = normal(2, 8, 8, 4), normal(6, 2, 8, 8, 4)
    theirs = torch.from_numpy(noise)
    for t, variance_noise in zip(scheduler.timesteps, torch.from_numpy(added), strict=True):
        out = stand_in(theirs, t, torch)
        theirs = scheduler.step(out, t, theirs, eta=eta, variance_noise=variance_noise).prev_sample
    schedule = schedule_from_diffusers(scheduler.config)
    require_close(ddim(predict, jnp.asarray(noise), schedule, 6, jnp.asarray(added), eta), theirs)


def test_stochastic_ddim_with_keys_depends_on_each_images_key_alone() -> None:
    schedule, keys = ScheduleConfig(), image_keys(2, jnp.arange(3, dtype=jnp.uint32))
    noise = starting_noise(2, jnp.arange(3, dtype=jnp.uint32), (8, 8, 4))
    together = ddim(predict, noise, schedule, 4, keys, eta=1.0)
    require_close(ddim(predict, noise[1:2], schedule, 4, keys[1:2], eta=1.0), together[1:2])
    require_close(ddim(predict, noise, schedule, 4, keys, eta=1.0), together)
    others = ddim(predict, noise, schedule, 4, image_keys(3, jnp.arange(3, dtype=jnp.uint32)), eta=1.0)
    assert (np.abs(np.asarray(others - together)).max(axis=(1, 2, 3)) > 0.1).all()


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_loops_over_the_single_steps_equal_the_samplers(prediction_type: str) -> None:
    steps, schedule = 5, ScheduleConfig(prediction_type=prediction_type)
    noise, alphas = jnp.asarray(normal(2, 8, 8, 4)), jnp.asarray(schedule.alphas_cumprod(), jnp.float32)
    x = noise
    for t in timesteps(schedule, steps):
        here, there = alphas[t], alphas[max(t - schedule.train_steps // steps, 0)]
        x = ddim_step(schedule, x, predict(x, jnp.asarray(t)), here, there)
    require_close(ddim(predict, noise, schedule, steps), x)

    calls = pndm_calls(schedule, steps)
    state = PNDMState(noise, noise, jnp.zeros((3, *noise.shape)), jnp.zeros_like(noise))
    for number in range(steps + 1):
        call = jax.tree.map(lambda rows, number=number: rows[number], calls)
        state = pndm_step(schedule, state, predict(state.x, call.timestep), call)
    require_close(pndm(predict, noise, schedule, steps), state.x)


def test_guidance_takes_conditioning_of_several_arrays() -> None:
    def network(x: jax.Array, t: jax.Array, conditioning: dict[str, Any]) -> jax.Array:
        context, pooled = conditioning["context"], conditioning["added"]["pooled"]
        return x * context.mean(axis=(1, 2))[:, None, None, None] + pooled.sum(axis=1)[:, None, None, None] + t[0]

    def conditioning() -> dict[str, Any]:
        return {"context": jnp.asarray(normal(2, 5, 6)), "added": {"pooled": jnp.asarray(normal(2, 3))}}

    x, wanted, negative = jnp.asarray(normal(2, 8, 8, 4)), conditioning(), conditioning()
    times = jnp.full((2,), 7.0)
    with_text, without = network(x, times, wanted), network(x, times, negative)
    predict = guided(network, wanted, negative, 4.0)
    require_close(predict(x, times[0]), without + 4.0 * (with_text - without))


@pytest.mark.parametrize(("conditioning", "scale", "images"), [({}, 7.5, 2), ("text", 1.0, 2), ("text", 7.5, 4)])
def test_what_cannot_be_guided_runs_a_single_batch(conditioning: Any, scale: float, images: int) -> None:
    if conditioning:
        conditioning = {"context": jnp.ones((2, 5, 6))}
    seen = []

    def network(x: jax.Array, t: jax.Array, given: Any) -> jax.Array:
        seen.append((len(x), len(t), *(len(leaf) for leaf in jax.tree.leaves(given))))
        return x

    x = jnp.asarray(normal(2, 8, 8, 4))
    require_close(guided(network, conditioning, conditioning, scale)(x, jnp.asarray(3)), x)
    assert [set(lengths) for lengths in seen] == [{images}]


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_alphas_match_diffusers(beta_schedule: str) -> None:
    scheduler = DDIMScheduler(beta_schedule=beta_schedule)
    ours = schedule_from_diffusers(scheduler.config).alphas_cumprod()
    np.testing.assert_allclose(ours, scheduler.alphas_cumprod.numpy(), rtol=2e-5)


def test_pndm_makes_one_call_more_than_steps() -> None:
    calls = []

    def record(x: jax.Array, t: jax.Array) -> jax.Array:
        jax.debug.callback(lambda t: calls.append(int(t)), t)
        return x

    pndm(record, jnp.ones((1, 2, 2, 4)), ScheduleConfig(), 25).block_until_ready()
    jax.effects_barrier()
    expected = PNDMScheduler(skip_prk_steps=True, steps_offset=1)
    expected.set_timesteps(25)
    assert sorted(calls, reverse=True) == expected.timesteps.tolist()
    assert len(calls) == 26


@pytest.mark.parametrize("steps", [0, 1000, 1001])
def test_impossible_step_counts_are_refused(steps: int) -> None:
    with pytest.raises(InputError, match="steps"):
        timesteps(ScheduleConfig(), steps)


def test_starting_noise_depends_on_seed_and_number_alone() -> None:
    noise = np.asarray(starting_noise(3, jnp.arange(6, dtype=jnp.uint32), (8, 8, 4)))
    alone = np.asarray(starting_noise(3, jnp.array([4], jnp.uint32), (8, 8, 4)))
    np.testing.assert_array_equal(noise[4:5], alone)
    assert len({row.tobytes() for row in noise}) == 6
    assert not np.array_equal(noise, starting_noise(4, jnp.arange(6, dtype=jnp.uint32), (8, 8, 4)))
    np.testing.assert_array_equal(as_noise(image_keys(3, jnp.arange(6, dtype=jnp.uint32)), (8, 8, 4)), noise)
    np.testing.assert_array_equal(as_noise(noise, (8, 8, 4)), noise)
