"""Prompts to pixels: against PyTorch Diffusers, and the same images whatever the batch and the form of the noise."""

from pathlib import Path
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler, PNDMScheduler, StableDiffusionPipeline

from bksdm_jax.pipelines.load import load_pipeline
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.sampling.generate import Generate, generate_images, make_generate, starting_noise
from bksdm_jax.sampling.text_to_image import SamplerConfig
from tests import tiny

PROMPTS = ["a photo of a cat", "the red rocket 🚀", "a cup", "space", "blue"]


@pytest.fixture(scope="module")
def micro_torch_teacher(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two stages, written by PyTorch Diffusers."""
    return tiny.write_torch_pipeline(tmp_path_factory.mktemp("pipelines") / "torch", tiny.MICRO, vae=tiny.MICRO_VAE)


class Sampler(NamedTuple):
    """A sampler with its compiled program."""

    pipeline: Pipeline
    config: SamplerConfig
    generate: Generate

    def images(self, batch_size: int, count: int = len(PROMPTS)) -> np.ndarray:
        """uint8 [count, 16, 16, 3], from keys."""
        pipeline, prompts = self.pipeline, list(enumerate(PROMPTS[:count]))
        made = generate_images(
            self.generate, pipeline.params, pipeline.caption_inputs, self.config, prompts, batch_size
        )
        numbers, images = zip(*made, strict=True)
        assert list(numbers) == list(range(count))
        return np.stack(images)


def make_sampler(folder: Path, name: str, guidance: float) -> Sampler:
    pipeline = load_pipeline(folder)
    config = SamplerConfig(steps=4, guidance_scale=guidance, resolution=16, sampler=name, seed=1)
    return Sampler(pipeline, config, jax.jit(make_generate(pipeline.architectures, config)))


@pytest.fixture(scope="module")
def pndm(micro_torch_teacher: Path) -> Sampler:
    return make_sampler(micro_torch_teacher, "pndm", 7.5)


def noise(count: int) -> np.ndarray:
    return np.array(starting_noise(1, jnp.arange(count, dtype=jnp.uint32), (8, 8, 4)))


def pytorchs_images(folder: Path, scheduler: type, guidance: float) -> np.ndarray:
    """What Diffusers makes of the first two prompts and the same starting noise: float [2, 16, 16, 3] in [0, 1]."""
    pipeline = StableDiffusionPipeline.from_pretrained(folder, safety_checker=None)
    pipeline.scheduler = scheduler.from_config(pipeline.scheduler.config)
    pipeline.set_progress_bar_config(disable=True)
    return pipeline(
        PROMPTS[:2],
        num_inference_steps=4,
        guidance_scale=guidance,
        latents=torch.from_numpy(noise(2).transpose(0, 3, 1, 2)),
        output_type="np",
    ).images


def test_images_of_guided_pndm_from_keys_match_pytorch(pndm: Sampler, micro_torch_teacher: Path) -> None:
    ours = pndm.images(batch_size=2, count=2)
    assert ours.std() > 10  # of 255: no flat colour
    assert np.abs(ours / 255.0 - pytorchs_images(micro_torch_teacher, PNDMScheduler, 7.5)).max() <= 1.5 / 255


@pytest.mark.slow
def test_images_of_ddim_from_starting_noise_match_pytorch(micro_torch_teacher: Path) -> None:
    pipeline, _, generate = make_sampler(micro_torch_teacher, "ddim", 1.0)
    captions, empty = pipeline.caption_inputs(PROMPTS[:2]), pipeline.caption_inputs([""])
    ours = np.asarray(generate(pipeline.params, captions, empty, noise(2))[0])
    assert np.abs(ours / 255.0 - pytorchs_images(micro_torch_teacher, DDIMScheduler, 1.0)).max() <= 1.5 / 255


def test_images_do_not_depend_on_the_batch_size(pndm: Sampler) -> None:
    by_two, by_five = pndm.images(batch_size=2).astype(int), pndm.images(batch_size=5).astype(int)
    assert np.abs(by_two - by_five).max() <= 1
    assert len({image.tobytes() for image in by_five}) == 5
