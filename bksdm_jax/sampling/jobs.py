"""The list of images that a run makes, and the calls that make them."""

import dataclasses
import hashlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.paths import local_path, read_bytes
from bksdm_jax.data.decode import ENDINGS, MOST_BYTES, open_image, to_rgb
from bksdm_jax.data.tables import Prompt, read_prompts
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.sampling.config import MOST_IMAGES, SampleConfig, require_text
from bksdm_jax.sampling.text_to_image import require_multiple

"""As many as there are names of six digits."""


@dataclasses.dataclass(frozen=True)
class Init:
    """An image to begin from.

    Attributes:
        path: its file.
        size: height and width in pixels that it is resized to.
        sha256: of the file.
    """

    path: Path
    size: tuple[int, int]
    sha256: str

    def pixels(self) -> np.ndarray:
        """uint8 [H, W, 3], resized as by Diffusers' `VaeImageProcessor`; raises `InputError` if it can't be read."""
        image = _decoded(self.path)[0]
        return np.asarray(image.resize(self.size[::-1], Image.Resampling.LANCZOS))


@dataclasses.dataclass(frozen=True)
class Job:
    """An image to make: its number, prompt, height and width in pixels, and what it begins from."""

    index: int
    prompt: Prompt
    size: tuple[int, int]
    init: Init | None = None

    @property
    def source(self) -> str:
        """The name in the prompts' table, or that of the image it begins from, with ? for bytes that aren't UTF-8."""
        return self.prompt.source or (self.init.path.name.encode(errors="replace").decode() if self.init else "")


def read_texts(config: SampleConfig) -> list[Prompt]:
    """The prompts of a run; raises `InputError` if they can't be read or one is too long."""
    prompts = read_prompts(config.prompts) if config.prompts else [Prompt(config.prompt)]
    require_text("prompts", max(prompts, key=lambda prompt: len(prompt.text)).text)
    return prompts


def list_jobs(config: SampleConfig, prompts: list[Prompt], networks: Architectures) -> list[Job]:
    """Every image of a run, by number.

    Args:
        config: the settings.
        prompts: one or more.
        networks: of the model.

    Raises:
        InputError: images to begin from can't be read or used, or their numbers don't fit.
    """
    per_prompt = config.images_per_prompt
    inits = find_inits(config, networks) if config.init else [None]
    if config.init and len(prompts) not in (1, len(inits)):
        raise InputError(
            f"init: {len(inits)} image(s) in {config.init} for {len(prompts)} prompts; "
            "expected one prompt, or as many as images"
        )
    count = max(len(prompts), len(inits))
    if count * per_prompt > MOST_IMAGES:
        raise InputError(f"images_per_prompt: {per_prompt} for {count} prompt(s); the limit is {MOST_IMAGES} images")
    size = image_size(config, networks)
    prompts, inits = ([*values] * count if len(values) == 1 else values for values in (prompts, inits))
    return [
        Job(number * per_prompt + i, prompt, init.size if init else size, init)
        for number, (prompt, init) in enumerate(zip(prompts, inits, strict=True))
        for i in range(per_prompt)
    ]


def image_size(config: SampleConfig, networks: Architectures) -> tuple[int, int]:
    """Height and width in pixels of images that don't begin from another."""
    return dataclasses.replace(config, resolution=config.resolution or networks.resolution).size


def find_inits(config: SampleConfig, networks: Architectures) -> list[Init]:
    """The images of `config.init`, all of them decoded once.

    Raises `InputError` if there are none, or one can't be decoded or has a size that the model can't make.
    """
    place = local_path("init", config.init)
    try:
        paths = [place]
        if place.is_dir():
            found = sorted(place.iterdir(), key=lambda path: path.name)
            paths = [path for path in found if path.suffix.lower() in ENDINGS and not path.name.startswith(".")]
    except (OSError, ValueError) as error:
        raise InputError(f"init: {config.init!r} can't be read ({error})") from error
    if not paths:
        raise InputError(f"init: no images in {place}; expected files of {', '.join(ENDINGS)}")
    inits = []
    for path in paths:
        image, sha256 = _decoded(path)
        given = (config.height or config.resolution, config.width or config.resolution)
        size = tuple(
            pixels or own // networks.factor * networks.factor
            for pixels, own in zip(given, (image.height, image.width), strict=True)
        )
        for key, pixels in zip(("height", "width"), size, strict=True):
            require_multiple(pixels, networks.factor, f"init: {path}: {key}")
        inits.append(Init(path, size, sha256))
    return inits


def _decoded(path: Path) -> tuple[Image.Image, str]:
    """Upright RGB, and the SHA-256 of the file."""
    data = read_bytes(path, MOST_BYTES)
    try:
        return to_rgb(open_image(data)), hashlib.sha256(data).hexdigest()
    except ValueError as error:
        raise InputError(f"{path}: not a readable image ({error}); replace the file or take another") from error


def images_per_call(jobs: Sequence[Job], batch_size: int, devices: int, processes: int) -> int:
    """Images of a program call on this process's devices: `batch_size` on each, fewer if there is less to make."""
    every = devices * processes
    largest = max(len(group) for group in _by_size(jobs))
    return min(batch_size, -(-largest // every)) * devices


def calls(jobs: Sequence[Job], count: int) -> list[tuple[Job, ...]]:
    """The jobs of each call, `count` of one size at most; those of a call are the same whatever exists already."""
    return [tuple(group[start : start + count]) for group in _by_size(jobs) for start in range(0, len(group), count)]


def _by_size(jobs: Sequence[Job]) -> list[list[Job]]:
    groups: dict[tuple[int, int], list[Job]] = {}
    for job in jobs:
        groups.setdefault(job.size, []).append(job)
    return list(groups.values())
