"""PNDM and DDIM against Diffusers' schedulers, and the images they make."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline

from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.samplers import SAMPLERS, timesteps
from bksdm_jax.diffusion.schedule import SPACINGS, ScheduleConfig
from bksdm_jax.formats.scheduler_json import schedule_from_diffusers
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.sampling.text_to_image import (
    Architectures,
    SamplerConfig,
    generate_images,
    make_generate,
    starting_noise,
)
from tests import tiny

SCHEDULERS = {
    "pndm": lambda **options: PNDMScheduler(**options, skip_prk_steps=True),
    "ddim": lambda **options: DDIMScheduler(**options, clip_sample=False),
}


def stand_in(x, t, backend):
    """A fixed nonlinear function in the place of the U-Net; `backend` is torch or jax.numpy."""
    return 0.7 * backend.tanh(1.3 * x + t / 1000) + 0.2 * backend.sin(2 * x)


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
    noise = np.random.default_rng().standard_normal((2, 4, 8, 8), np.float32)
    theirs = torch.from_numpy(noise)
    for t in scheduler.timesteps:
        theirs = scheduler.step(stand_in(theirs, t, torch), t, theirs).prev_sample
    schedule = schedule_from_diffusers(scheduler.config)

    def sample(x: jax.Array) -> jax.Array:
        return SAMPLERS[name](lambda x, t: stand_in(x, t.astype(jnp.float32), jnp), x, schedule, steps)

    ours = np.asarray(jax.jit(sample)(noise.transpose(0, 2, 3, 1))).transpose(0, 3, 1, 2)
    assert np.abs(ours - theirs.numpy()).max() <= 1e-5 * np.abs(theirs.numpy()).max()


def test_ddim_clips_where_its_config_says_so() -> None:
    scheduler = DDIMScheduler(**tiny.SD_BETAS)  # clips by default
    scheduler.set_timesteps(5)
    noise = np.random.default_rng().standard_normal((1, 4, 8, 8), np.float32)
    theirs = torch.from_numpy(noise)
    for t in scheduler.timesteps:
        theirs = scheduler.step(stand_in(theirs, t, torch), t, theirs).prev_sample
    schedule = schedule_from_diffusers(scheduler.config)
    assert schedule.clip_range == 1.0
    ours = SAMPLERS["ddim"](lambda x, t: stand_in(x, t.astype(jnp.float32), jnp), jnp.asarray(noise), schedule, 5)
    assert np.abs(np.asarray(ours) - theirs.numpy()).max() <= 1e-5 * np.abs(theirs.numpy()).max()


@pytest.mark.parametrize("beta_schedule", ["linear", "scaled_linear", "squaredcos_cap_v2"])
def test_alphas_match_diffusers(beta_schedule: str) -> None:
    scheduler = DDIMScheduler(beta_schedule=beta_schedule)
    ours = schedule_from_diffusers(scheduler.config).alphas_cumprod()
    np.testing.assert_allclose(ours, scheduler.alphas_cumprod.numpy(), rtol=2e-5)


def test_pndm_makes_one_call_more_than_steps() -> None:
    calls = []

    def predict(x: jax.Array, t: jax.Array) -> jax.Array:
        jax.debug.callback(lambda t: calls.append(int(t)), t)
        return x

    SAMPLERS["pndm"](predict, jnp.ones((1, 2, 2, 4)), ScheduleConfig(), 25).block_until_ready()
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


def networks_of(pipeline: Pipeline) -> tuple[Architectures, dict]:
    names = ("unet", "vae", "text_encoder")
    configs = {name: pipeline.networks[name].config for name in names}
    return Architectures(**configs, schedule=pipeline.schedule), {n: getattr(pipeline, n).params for n in names}


def test_images_do_not_depend_on_batch_size(micro_teacher: Path) -> None:
    pipeline = load_pipeline(micro_teacher)
    networks, params = networks_of(pipeline)
    config = SamplerConfig(steps=3, guidance_scale=4.0, resolution=16, seed=5)
    generate = jax.jit(make_generate(networks, config))
    prompts = list(enumerate(["a red cat", "the rocket", "a cup", "space", "blue"]))
    runs = [dict(generate_images(generate, params, pipeline.tokenizer, config, prompts, size)) for size in (1, 2, 5)]
    for run in runs[1:]:
        assert list(run) == [0, 1, 2, 3, 4]
        for index, image in run.items():
            assert np.abs(image.astype(int) - runs[0][index].astype(int)).max() <= 1
    assert len({image.tobytes() for image in runs[0].values()}) == 5


@pytest.mark.parametrize(("sampler", "guidance"), [("pndm", 7.5), ("ddim", 1.0)])
def test_images_match_pytorch_diffusers(torch_teacher: Path, sampler: str, guidance: float) -> None:
    """Prompt to pixels, from the same starting noise."""
    pipeline = load_pipeline(torch_teacher)
    networks, params = networks_of(pipeline)
    config = SamplerConfig(steps=4, guidance_scale=guidance, resolution=64, sampler=sampler, seed=1)
    generate = jax.jit(make_generate(networks, config))
    prompts = ["a photo of a cat", "the red rocket 🚀"]
    ours = [
        image for _, image in generate_images(generate, params, pipeline.tokenizer, config, list(enumerate(prompts)), 2)
    ]
    theirs = StableDiffusionPipeline.from_pretrained(torch_teacher, safety_checker=None)
    theirs.scheduler = {"pndm": PNDMScheduler, "ddim": DDIMScheduler}[sampler].from_config(
        theirs.scheduler.config, clip_sample=False
    )
    theirs.set_progress_bar_config(disable=True)
    noise = np.array(starting_noise(1, jnp.arange(2, dtype=jnp.uint32), (8, 8, 4)))
    expected = theirs(
        prompts,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=torch.from_numpy(noise.transpose(0, 3, 1, 2)),
        output_type="np",
    ).images
    assert np.abs(np.stack(ours) / 255.0 - expected).max() <= 1.5 / 255
