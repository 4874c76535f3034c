"""Prompts to pixels: against PyTorch Diffusers, and the same images whatever the batch and the form of the noise."""

from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline

from bksdm_jax.diffusion.noise import starting_noise
from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.sampling.text_to_image import SamplerConfig, generate_images, make_generate
from tests import tiny

RESOLUTION = 16
LATENTS = (8, 8, 4)


@pytest.fixture(scope="module")
def micro_torch_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages, written by PyTorch Diffusers."""
    return tiny.write_torch_pipeline(tmp_path_factory.mktemp("pipelines") / "torch", tiny.MICRO, vae=tiny.MICRO_VAE)


def test_images_depend_on_neither_batch_size_nor_the_form_of_the_noise(micro_teacher: Path) -> None:
    pipeline = load_pipeline(micro_teacher)
    config = SamplerConfig(steps=3, guidance_scale=4.0, resolution=RESOLUTION, seed=5)
    generate = jax.jit(make_generate(pipeline.architectures, config))
    texts = ["a red cat", "the rocket", "a cup", "space", "blue"]
    prompts = list(enumerate(texts))
    by_two, by_five = (
        dict(generate_images(generate, pipeline.params, pipeline.caption_inputs, config, prompts, size))
        for size in (2, 5)
    )
    assert list(by_two) == [0, 1, 2, 3, 4]
    assert len({image.tobytes() for image in by_five.values()}) == 5
    noise = starting_noise(5, jnp.arange(5, dtype=jnp.uint32), LATENTS)
    captions, empty = pipeline.caption_inputs(texts), pipeline.caption_inputs([""])
    given = np.asarray(generate(pipeline.params, captions, empty, noise))
    for index, image in by_five.items():
        assert np.abs(image.astype(int) - by_two[index].astype(int)).max() <= 1
        assert np.abs(image.astype(int) - given[index].astype(int)).max() <= 1


@pytest.mark.parametrize(("sampler", "guidance"), [("pndm", 7.5), ("ddim", 1.0)])
def test_images_match_pytorch_diffusers(micro_torch_teacher: Path, sampler: str, guidance: float) -> None:
    """From the same starting noise."""
    pipeline = load_pipeline(micro_torch_teacher)
    config = SamplerConfig(steps=4, guidance_scale=guidance, resolution=RESOLUTION, sampler=sampler, seed=1)
    generate = jax.jit(make_generate(pipeline.architectures, config))
    prompts = ["a photo of a cat", "the red rocket 🚀"]
    made = generate_images(generate, pipeline.params, pipeline.caption_inputs, config, list(enumerate(prompts)), 2)
    ours = np.stack([image for _, image in made])
    theirs = StableDiffusionPipeline.from_pretrained(micro_torch_teacher, safety_checker=None)
    theirs.scheduler = {"pndm": PNDMScheduler, "ddim": DDIMScheduler}[sampler].from_config(
        theirs.scheduler.config, clip_sample=False
    )
    theirs.set_progress_bar_config(disable=True)
    noise = np.array(starting_noise(1, jnp.arange(2, dtype=jnp.uint32), LATENTS))
    expected = theirs(
        prompts,
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=torch.from_numpy(noise.transpose(0, 3, 1, 2)),
        output_type="np",
    ).images
    assert ours.std() > 10  # of 255: not one flat colour
    assert np.abs(ours / 255.0 - expected).max() <= 1.5 / 255
