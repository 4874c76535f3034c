"""Whole pipelines, from text or an image to pixels, against PyTorch's, with the folder's own scheduler file."""

import functools
import importlib
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import diffusers
import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image

from bksdm_jax.diffusion import guidance
from bksdm_jax.diffusion.samplers import SCHEDULER, sampler_calls
from bksdm_jax.models.unet import UNet
from bksdm_jax.pipelines.load import find_model, load_pipeline
from bksdm_jax.sampling.text_to_image import SamplerConfig, first_step, text_to_image
from tests import sampling_oracle
from tests.scheduler_files import FILES, V, with_scheduler

MODELS = {"v1": ("v1", {}), "v2 base": ("v2", {}), "v2 at 768": ("v2", V)}
SAMPLED = [name for name, file in FILES.items() if file["_class_name"] != "LMSDiscreteScheduler"]
SAMPLED = [name for name in SAMPLED if "Singlestep" not in FILES[name]["_class_name"] and name != "predicts z_0"]
SOME = (
    "SD 1.5",
    "DDIM that clips",
    "offset 0",
    "Runge-Kutta",
    "Euler",
    "DDPM",
    "DPM-Solver++ 2M SDE Karras",
    "UniPC",
    "LCM",
    "Heun",
    "zero SNR",
)
PROMPTS = ["a photo of a red cat", "the blue rocket"]
STEPS, SCALE, STRENGTH, SIDE = 6, 3.0, 0.7, 64


def normal(*shape: int) -> np.ndarray:
    return np.random.default_rng().standard_normal(shape, np.float32)


def chw(array: np.ndarray) -> torch.Tensor:
    return torch.from_numpy(np.moveaxis(array, -1, -3).copy())


class Noise:
    """Of the start, of the steps, and of the autoencoder."""

    def __init__(self, height: int = 8, width: int = 8) -> None:
        self.start, self.encoding = normal(2, height, width, 4), normal(2, height, width, 4)
        self.steps = normal(30, 2, height, width, 4)


def pytorchs(folder: Path, noise: Noise, init: np.ndarray | None) -> np.ndarray:
    """Images [2, H, W, 3] in [0, 1]; `init` is uint8."""
    cls = StableDiffusionPipeline if init is None else StableDiffusionImg2ImgPipeline
    pipeline = cls.from_pretrained(folder, safety_checker=None)
    pipeline.set_progress_bar_config(disable=True)
    options: dict[str, Any] = {"latents": chw(noise.start), "height": SIDE, "width": SIDE}
    if init is not None:
        options = {"image": [Image.fromarray(image) for image in init], "strength": STRENGTH}
    scheduler = importlib.import_module(type(pipeline.scheduler).__module__)
    vae = diffusers.models.autoencoders.vae
    start = diffusers.pipelines.stable_diffusion.pipeline_stable_diffusion_img2img
    with (
        mock.patch.object(scheduler, "randn_tensor", create=True, side_effect=map(chw, noise.steps)),
        mock.patch.object(vae, "randn_tensor", new=Encoding(noise)),
        mock.patch.object(start, "randn_tensor", return_value=chw(noise.start)),
    ):
        return pipeline(PROMPTS, num_inference_steps=STEPS, guidance_scale=SCALE, output_type="np", **options).images


class Encoding:
    """The noise of the autoencoder, which is asked for one image at a time, or for all at once."""

    def __init__(self, noise: Noise) -> None:
        self._noise, self._begun = chw(noise.encoding), 0

    def __call__(self, shape: Any, **_: Any) -> torch.Tensor:
        begun, self._begun = self._begun, self._begun + shape[0]
        return self._noise[begun : self._begun]


class Ours:
    """A model's networks, compiled once for all scheduler files."""

    def __init__(self, folder: Path) -> None:
        pipeline = load_pipeline(folder)
        self.networks, self.params, self.captions = pipeline.architectures, pipeline.params, pipeline.caption_inputs
        parts = text_to_image(self.networks, SamplerConfig(resolution=SIDE, sampler="ddim"))
        self.decode, self.encode = jax.jit(parts.decode), jax.jit(parts.encode)
        condition, unet = jax.jit(parts.condition), UNet(self.networks.denoiser)
        context, negative = (condition(self.params, self.captions(texts)) for texts in (PROMPTS, ["", ""]))

        def guided(params: Any, context: Any, negative: Any, x: jax.Array, t: jax.Array) -> jax.Array:
            def network(x: jax.Array, t: jax.Array, conditioning: Any) -> jax.Array:
                return unet.apply({"params": params}, x, t, conditioning)

            return guidance.guided(network, context, negative, SCALE)(x, t)

        self._guided = functools.partial(jax.jit(guided), self.params["unet"], context, negative)

    def images(self, folder: Path, noise: Noise, init: np.ndarray | None) -> np.ndarray:
        """uint8 [2, H, W, 3], with the scheduler file of `folder`."""
        schedule = find_model(folder).architectures.schedule
        begin = None if init is None else first_step(STEPS, STRENGTH)
        calls = sampler_calls(SCHEDULER, schedule, STEPS, begin)
        latents = None if init is None else np.asarray(self.encode(self.params, init, jnp.asarray(noise.encoding)))

        def network(x: np.ndarray, t: float) -> np.ndarray:
            return np.asarray(self._guided(jnp.asarray(x, jnp.float32), jnp.float32(t)))

        made, _ = sampling_oracle.in_numpy(calls, noise.start, noise.steps, latents, network)
        return np.asarray(self.decode(self.params, jnp.asarray(made, jnp.float32)))


@pytest.fixture(scope="module")
def ours(sd_teachers: dict[str, Path]) -> Callable[[str], Ours]:
    return functools.cache(lambda generation: Ours(sd_teachers[generation]))


def require_same_images(
    name: str, model: str, init: bool, teachers: dict[str, Path], ours: Callable[[str], Ours], scratch: Path
) -> None:
    generation, more = MODELS[model]
    file = {key: value for key, value in FILES[name].items() if key != "prediction_type"} | more
    if file.get("rescale_betas_zero_snr"):
        file |= V
    folder = with_scheduler(teachers[generation], scratch / f"{init}", file)
    noise = Noise()
    image = np.random.default_rng().integers(0, 256, (2, SIDE, SIDE, 3), np.uint8) if init else None
    made, theirs = ours(generation).images(folder, noise, image), pytorchs(folder, noise, image)
    assert theirs.std() > 0.05  # no flat colour
    assert np.abs(made / 255.0 - theirs).mean() <= 1 / 255, (name, model, init)


@pytest.mark.parametrize(("number", "name"), enumerate(SOME))
def test_images_are_pytorchs(
    number: int, name: str, sd_teachers: dict[str, Path], ours: Callable[[str], Ours], tmp_path: Path
) -> None:
    """From text or from images, with one of the models."""
    require_same_images(name, list(MODELS)[number % 3], number % 2 == 1, sd_teachers, ours, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "model"), itertools.product(SAMPLED, MODELS))
def test_images_of_every_model_are_pytorchs(
    name: str, model: str, sd_teachers: dict[str, Path], ours: Callable[[str], Ours], tmp_path: Path
) -> None:
    for init in (False, True):
        require_same_images(name, model, init, sd_teachers, ours, tmp_path)
