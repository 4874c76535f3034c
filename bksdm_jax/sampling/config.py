"""The settings of `launch.sample`."""

import dataclasses

from bksdm_jax.base.errors import InputError, finite_number, known_name, whole_number
from bksdm_jax.pipelines.parts import PartsConfig
from bksdm_jax.pipelines.source import ModelOptions
from bksdm_jax.pipelines.tokenizer import MOST_LETTERS
from bksdm_jax.sampling.text_to_image import SamplerConfig
from bksdm_jax.sampling.writer import FORMATS

MAY_CHANGE = ("batch_size", "prompts", "init", "latents", "workers", "revision")
"""Keys that may differ when a run continues: what they name is recorded too, or they change pixels by rounding only."""
MOST_BESIDE = 64
MOST_WORKERS = 256


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplerConfig, ModelOptions, PartsConfig):
    """What to sample; see `SamplerConfig` for the sampler's settings, `PartsConfig` for parts of other files.

    Attributes:
        model: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        revision, variant, tokenizer, prediction: of the model, see `ModelSource`; `teacher` and `beside` take none.
        prompts, prompt: a `.txt` or `.csv` file of prompts, or a single prompt; give one of the two.
        images_per_prompt: image number i is of prompt i // images_per_prompt.
        init: an image, or a folder of images in the order of their names, to begin from; each is used with the one
            prompt, or with its own if there are as many prompts. An image keeps its size, rounded down to whole
            latents, unless `resolution`, `height` or `width` is given.
        strength: how much of the steps an image to begin from goes through, above 0 and up to 1.
        latents: a `.npy` or `.safetensors` file of starting noise, see `read_latents`; empty: drawn from `seed`.
        teacher: the model whose denoiser makes the first `switch_at` steps.
        beside: more models, whose images of the same prompts and noise go to `beside_1/`, `beside_2/`, ...; the
            settings and parts apply to all models.
        protocol: a key of `PROTOCOLS`, which then decides what it lists; empty: none.
        format: of the images, `png` or `jpeg`; previews and sheets are PNG.
        batch_size: images per program call and device; in float32 it changes an image only by rounding.
        resolution: pixels; 0: the model's own.
        previews: 5 writes the estimate of the image at every fifth U-Net call to `previews/`, as PNG; 0: none.
        preview_vae: the autoencoder that decodes them, such as TAESD; empty: the model's.
        dtype: of the networks' computations, `float32` or `bfloat16`.
        workers: threads that encode and write files.
    """

    model: str
    prompts: str = ""
    prompt: str = ""
    images_per_prompt: int = 1
    init: str = ""
    strength: float = 0.8
    latents: str = ""
    teacher: str = ""
    beside: tuple[str, ...] = ()
    protocol: str = ""
    format: str = "png"
    batch_size: int = 4
    resolution: int = 0
    sampler: str = "scheduler"
    previews: int = 0
    preview_vae: str = ""
    dtype: str = "float32"
    workers: int = 4

    @property
    def strength_used(self) -> float | None:
        """The strength; None: there is no image to begin from."""
        return self.strength if self.init else None


def require_settings(config: SampleConfig) -> None:
    """Raises `InputError` for a setting that can't be used whatever the model is."""
    if bool(config.prompts) == bool(config.prompt):
        raise InputError("prompts: give either prompts (a .txt or .csv file) or one prompt")
    if bool(config.teacher) != bool(config.switch_at):
        given, missing = ("teacher", "switch_at") if config.teacher else ("switch_at", "teacher")
        raise InputError(f"{given}: given without {missing}; give both or neither")
    require_text("prompt", config.prompt)
    require_text("negative_prompt", config.negative_prompt)
    known_name("config", "format", config.format, FORMATS)
    whole_number("config", "batch_size", config.batch_size)
    whole_number("config", "images_per_prompt", config.images_per_prompt)
    whole_number("config", "previews", config.previews, 0)
    if config.preview_vae and not config.previews:
        raise InputError("preview_vae: given without previews; give both, or leave it out")
    whole_number("config", "workers", config.workers, 1, MOST_WORKERS)
    finite_number("config", "strength", config.strength, 0, 1)
    if len(config.beside) > MOST_BESIDE:
        raise InputError(f"beside: {len(config.beside)} models; the limit is {MOST_BESIDE}")
    for name in config.beside:
        if not isinstance(name, str) or not name:
            raise InputError(f"beside: {name!r}; expected names of models, as for model")


def require_text(key: str, text: str) -> None:
    """Raises `InputError` if a prompt is too long or no Unicode text."""
    if len(text) > MOST_LETTERS:
        raise InputError(f"{key}: {text[:40]!r}... has {len(text)} characters; the limit is {MOST_LETTERS}")
    try:
        text.encode()
    except UnicodeEncodeError as error:  # bytes of the command line that aren't UTF-8
        raise InputError(f"{key}: character {error.start + 1} of {text[:40]!r} isn't valid Unicode") from error
