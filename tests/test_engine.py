"""The engine against loops over single calls of the networks, on eight devices."""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.diffusion.guidance import combined
from bksdm_jax.diffusion.noise import image_keys
from bksdm_jax.models.unet import UNet
from bksdm_jax.models.unet_table import cuts
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pruning.removal import plan_removal, removed_blocks
from bksdm_jax.sampling.engine import Batch, Engine, Previews
from bksdm_jax.sampling.generate import starting_noise
from bksdm_jax.sampling.text_to_image import SamplerConfig, not_finite, text_to_image
from tests import sampling_oracle, tiny

CONFIG = SamplerConfig(steps=4, guidance_scale=3.0, resolution=16, sampler="ddim", seed=3, negative_prompt="blue")
PROMPTS = ("a photo of a cat", "the red rocket 🚀", "a cup")


@pytest.fixture(scope="module")
def pipeline(micro_torch_teacher: Path) -> Pipeline:
    loaded = load_pipeline(micro_torch_teacher)
    return dataclasses.replace(loaded, schedule=dataclasses.replace(loaded.schedule, set_alpha_to_one=True))


@pytest.fixture(scope="module")
def other(pipeline: Pipeline) -> Pipeline:
    """With another U-Net."""
    params = jax.tree.map(lambda leaf: leaf * np.float32(0.9), pipeline.denoiser.params)
    return pipeline.with_denoiser(pipeline.denoiser.config, params)


def by_hand(pipeline: Pipeline, config: SamplerConfig, teacher: Pipeline | None = None) -> np.ndarray:
    """The images of `PROMPTS`, by single calls of the U-Net."""
    parts = text_to_image(pipeline.architectures, dataclasses.replace(config, switch_at=0))
    params = pipeline.params
    encode = jax.jit(parts.condition)
    states = [
        encode(params, pipeline.caption_inputs([text]))["context"] for text in (*[CONFIG.negative_prompt] * 3, *PROMPTS)
    ]
    conditioning = {"context": jnp.concatenate(states)}
    unet = UNet(pipeline.denoiser.config, cut=1)
    full = jax.jit(lambda params, *inputs: unet.apply({"params": params}, *inputs, method="full"))
    shallow = jax.jit(lambda params, *inputs: unet.apply({"params": params}, *inputs, method="shallow"))
    calls, deep = 0, None

    def network(x: np.ndarray, t: float) -> np.ndarray:
        nonlocal calls, deep
        own = teacher if teacher is not None and calls < config.switch_at else pipeline
        since = calls if calls < config.switch_at else calls - config.switch_at
        inputs = (jnp.asarray(np.concatenate([x, x]), jnp.float32), jnp.full(len(x) * 2, t, jnp.float32), conditioning)
        if since % max(config.deep_cache, 1) == 0:
            out, deep = full(own.denoiser.params, *inputs)
        else:
            out = shallow(own.denoiser.params, *inputs, deep)
        calls += 1
        return np.asarray(combined(out, config.guidance_scale))

    noise = np.asarray(starting_noise(config.seed, jnp.arange(3, dtype=jnp.uint32), (8, 8, 4)))
    made, _ = sampling_oracle.in_numpy(parts.calls, noise, np.zeros((4, *noise.shape)), None, network)
    return np.asarray(jax.jit(parts.decode)(params, jnp.asarray(made, jnp.float32)))


def require_same(ours: np.ndarray, expected: np.ndarray) -> None:
    assert expected.std() > 5
    assert np.abs(ours.astype(int) - expected).max() <= 1


def test_images_depend_on_their_number_alone_and_previews_end_in_them(pipeline: Pipeline) -> None:
    engine = Engine(pipeline, CONFIG, previews=Previews(2, pipeline.networks["vae"]))
    assert engine.per_call == 8
    batches = [Batch((0, 1), PROMPTS[:2]), Batch((2,), PROMPTS[2:]), Batch((2, 1), PROMPTS[:0:-1])]
    first, second, third = engine.make(batches)
    expected = by_hand(pipeline, CONFIG)
    require_same(np.concatenate([first.images, second.images]), expected)
    require_same(third.images, expected[:0:-1])
    assert list(first.previews) == [1, 3]
    np.testing.assert_array_equal(first.previews[3], first.images)
    assert np.abs(first.previews[1].astype(int) - first.images).max() > 1
    assert len(engine.seconds) == 2
    assert engine.first_seconds > 0


@pytest.mark.slow
def test_a_batch_can_have_its_own_seed_and_negative_prompt(pipeline: Pipeline) -> None:
    own = dataclasses.replace(CONFIG, sampler="euler_ancestral", seed=5, negative_prompt="space")
    engine = Engine(pipeline, dataclasses.replace(own, seed=3, negative_prompt="blue"))
    alone, together = Batch((4,), PROMPTS[:1]), Batch((4,), PROMPTS[:1], seed=5, negative_prompt="space")
    first, second = engine.make([alone, together])
    (expected,) = Engine(pipeline, own).make([alone])
    np.testing.assert_array_equal(second.images, expected.images)
    assert np.abs(first.images.astype(int) - second.images).max() > 5
    assert len(engine.seconds) == 1  # the other call compiled


@pytest.mark.slow
def test_a_teacher_begins_and_deep_features_are_reused(pipeline: Pipeline, other: Pipeline) -> None:
    config = dataclasses.replace(CONFIG, switch_at=1, deep_cache=2)
    (made,) = Engine(pipeline, config, teacher=other).make([Batch((0, 1, 2), PROMPTS)])
    require_same(made.images, by_hand(pipeline, config, other))
    for change in ({"switch_at": 0}, {"deep_cache": 0}):
        without = by_hand(pipeline, dataclasses.replace(config, **change), other)
        assert np.abs(made.images.astype(int) - without).max() > 1


@pytest.mark.slow
def test_images_begin_from_others_of_any_size(pipeline: Pipeline) -> None:
    init = np.random.default_rng(0).integers(0, 256, (2, 18, 26, 3), np.uint8)
    noise = np.random.default_rng(1).standard_normal((2, 9, 13, 4)).astype(np.float32)
    config = dataclasses.replace(CONFIG, steps=10, decode="slices")
    engine = Engine(pipeline, config, strength=0.1)
    (made,) = engine.make([Batch((0, 1), PROMPTS[:2], init, noise)])
    assert made.images.shape == init.shape

    parts = text_to_image(pipeline.architectures, config, strength=0.1)
    keys = jax.vmap(lambda key: jax.random.fold_in(key, 2**32 - 1))(image_keys(3, jnp.arange(2, dtype=jnp.uint32)))
    latents = parts.encode(pipeline.params, jnp.asarray(init), keys)

    def denoised(params: Any, latents: jax.Array) -> jax.Array:
        contexts = [parts.condition(params, pipeline.caption_inputs(texts)) for texts in (PROMPTS[:2], ["blue"])]
        return parts.decode(params, parts.denoise(params, *contexts, jnp.asarray(noise), latents)[0])

    require_same(made.images, np.asarray(jax.jit(denoised)(pipeline.params, latents)))


@pytest.mark.parametrize(
    ("change", "strength", "facts"),
    [
        ({"steps": 0}, None, ("steps", "0")),
        ({"steps": 1001}, None, ("steps", "1001", "1000")),
        ({}, 0.0, ("strength", "0")),
        ({}, 1.5, ("strength", "1.5")),
        ({}, 0.2, ("strength", "0.2", "4")),
        ({"eta": 2.0}, None, ("eta", "2")),
        ({"guidance_rescale": -1.0}, None, ("guidance_rescale", "-1")),
        ({"height": 17}, None, ("height", "17", "multiple of 2")),
        ({"width": 9000}, None, ("width", "9000", "4096")),
        ({"deep_cache": 2, "deep_cache_cut": 99}, None, ("deep_cache_cut", "99")),
        ({"decode": "tile"}, None, ("decode", "tile", "tiles")),
        ({"switch_at": 2}, None, ("switch_at", "2", "teacher")),
        ({"switch_at": 4}, None, ("switch_at", "4", "3")),
        ({"switch_at": 1}, 0.25, ("switch_at", "1", "0")),
    ],
)
def test_bad_settings_are_refused(
    pipeline: Pipeline, change: dict[str, Any], strength: float | None, facts: tuple[str, ...]
) -> None:
    with pytest.raises(InputError) as error:
        Engine(pipeline, dataclasses.replace(CONFIG, **change), strength=strength)
    assert all(fact in str(error.value) for fact in facts), error.value


def test_previews_that_cannot_be_made_are_refused(pipeline: Pipeline) -> None:
    with pytest.raises(InputError, match=r"previews is 5.*4"):
        Engine(pipeline, CONFIG, previews=Previews(5))
    vae = pipeline.networks["vae"]
    wider = dataclasses.replace(vae, config=dataclasses.replace(vae.config, latent_channels=16))
    with pytest.raises(InputError, match=r"preview_vae: latent_channels is 16.*4"):
        Engine(pipeline, CONFIG, previews=Previews(2, wider))


def test_an_image_that_is_not_finite_is_an_error_after_the_others(pipeline: Pipeline) -> None:
    noise = np.random.default_rng(0).standard_normal((4, 8, 8, 4)).astype(np.float32)
    noise[3] = 3e38
    batches = [Batch((4, 5), PROMPTS[:2], noise=noise[:2]), Batch((6, 7), PROMPTS[:2], noise=noise[2:])]
    made = Engine(pipeline, CONFIG).make(batches)
    assert next(made).images.std() > 5
    with pytest.raises(InputError, match=r"image 7.*rocket.*guidance_scale"):
        next(made)
    for dtype in ("float32", "bfloat16"):
        assert ("set dtype to float32" in str(not_finite(7, "a cup", dtype))) == (dtype == "bfloat16")


def test_a_teacher_that_does_not_fit_is_refused(pipeline: Pipeline, other: Pipeline) -> None:
    config = dataclasses.replace(CONFIG, switch_at=1)
    velocity = dataclasses.replace(other, schedule=dataclasses.replace(other.schedule, prediction_type="v_prediction"))
    cached = dataclasses.replace(config, deep_cache=2, deep_cache_cut=cuts(pipeline.denoiser.config)[-1])
    plan = plan_removal(pipeline.denoiser.config, removed_blocks(tiny.MICRO_SMALL))
    fewer = dataclasses.replace(other.denoiser, config=plan.student)
    small = dataclasses.replace(other, networks=dict(other.networks) | {"unet": fewer})
    with pytest.raises(InputError, match=r"teacher: deep_cache_cut is"):
        Engine(pipeline, cached, teacher=small)
    with pytest.raises(InputError, match=r"teacher: .*prediction type.*epsilon and v_prediction"):
        Engine(pipeline, config, teacher=velocity)
