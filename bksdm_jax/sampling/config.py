"""The settings of sampling and of `launch.sample`; nothing here imports JAX."""

import dataclasses
from typing import NamedTuple

from bksdm_jax.base.choices import require_dtype
from bksdm_jax.base.errors import InputError, finite_number, known_name, whole_number
from bksdm_jax.diffusion.choices import SAMPLERS, SCHEDULER
from bksdm_jax.models.choices import require_attention_name, require_norms_name
from bksdm_jax.pipelines.config import LORA_MAY_CHANGE, LoraOptions, PartsConfig, require_loras, require_parts
from bksdm_jax.pipelines.source import ModelOptions
from bksdm_jax.pipelines.tokenizer import MOST_LETTERS

MAY_CHANGE = ("batch_size", "prompts", "init", "latents", "workers", "revision", *LORA_MAY_CHANGE)
"""Keys that may differ when a run continues: what they name is recorded too, or they change pixels by rounding only."""
MOST_BESIDE = 64
MOST_WORKERS = 256
MOST_RESOLUTION = 4096  # pixels
MOST_IMAGES = 10**6
MOST_SEED = 2**32 - 1
"""Larger seeds would silently be cut to 32 bits."""
DECODING = ("whole", "slices", "tiles")


class Format(NamedTuple):
    """Pillow's name of a format, and the ending of its files."""

    pillow: str
    ending: str


FORMATS = {"png": Format("PNG", ".png"), "jpeg": Format("JPEG", ".jpg")}


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplerConfig:
    """How images are made.

    Attributes:
        steps: sampler steps as Diffusers counts them. PNDM calls the U-Net once more, or nine times more if the model's
            scheduler file doesn't skip the Runge-Kutta steps; Heun's method calls it nearly twice a step.
        guidance_scale: of classifier-free guidance; values up to 1 switch it off.
        guidance_rescale: 0: the guided output as it is; 1: with the standard deviation of the conditional output (Lin
            et al. 2023, section 3.4); between: a mixture.
        resolution: height and width in pixels.
        height, width: in pixels; 0: `resolution`.
        sampler: ddpm, ddim, pndm, dpmpp_2m, dpmpp_2m_karras, dpmpp_2m_sde, dpmpp_2m_sde_karras, euler, euler_karras,
            euler_ancestral, heun, heun_karras, unipc, unipc_karras, lcm, or `scheduler`: the model's own. Another than
            that is made from its scheduler file as by Diffusers' `from_config`.
        eta: of DDIM, 0 to 1: 0 is deterministic, 1 has the noise of DDPM.
        seed: image number i starts from noise drawn with `fold_in(key(seed), i)`.
        negative_prompt: what guidance steers away from.
        attention: of the U-Net: auto, xla, chunked, cudnn or cudnn_padded (NVIDIA), flash or splash (TPU).
        norms: who computes the sums of group normalisation of the U-Net: xla, or pallas (kernels for NVIDIA GPUs).
        switch_at: the first steps, this many of those that are made, are a teacher's; 0: none.
        deep_cache: DeepCache's interval, in U-Net calls: 3 runs the whole U-Net every third call; 0 or 1: every call.
        deep_cache_cut: the skip up to which the other calls run it; 0 is `conv_in`'s output.
        decode: of the autoencoder: `whole`, or for less memory `slices` (one image at a time) or `tiles` (of 512 pixels
            in models of Stable Diffusion, blended where they overlap).
    """

    steps: int = 25
    guidance_scale: float = 7.5
    guidance_rescale: float = 0.0
    resolution: int = 512
    height: int = 0
    width: int = 0
    sampler: str = "pndm"
    eta: float = 0.0
    seed: int = 0
    negative_prompt: str = ""
    attention: str = "auto"
    norms: str = "xla"
    switch_at: int = 0
    deep_cache: int = 0
    deep_cache_cut: int = 1
    decode: str = "whole"

    @property
    def size(self) -> tuple[int, int]:
        """Height and width in pixels."""
        return self.height or self.resolution, self.width or self.resolution


def require_sampling(config: SamplerConfig) -> None:
    """Raises `InputError`, with the key, for a setting that no model can be sampled with."""
    whole_number("config", "steps", config.steps)
    known_name("config", "sampler", config.sampler, (SCHEDULER, *SAMPLERS))
    require_attention_name(config.attention)
    require_norms_name(config.norms)
    finite_number("config", "eta", config.eta, 0, 1)
    finite_number("config", "guidance_scale", config.guidance_scale, 0)
    finite_number("config", "guidance_rescale", config.guidance_rescale, 0, 1)
    whole_number("config", "seed", config.seed, 0, MOST_SEED)
    for key in ("resolution", "height", "width"):
        if (pixels := getattr(config, key)) > MOST_RESOLUTION:
            raise InputError(f"{key}: {pixels} pixels; expected {MOST_RESOLUTION} at most")
        whole_number("config", key, pixels, 0)
    whole_number("config", "switch_at", config.switch_at, 0)
    for key in ("deep_cache", "deep_cache_cut"):
        whole_number("config", key, getattr(config, key), 0)
    known_name("config", "decode", config.decode, DECODING)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SampleConfig(SamplerConfig, ModelOptions, LoraOptions, PartsConfig):
    """What to sample; see `SamplerConfig` for the sampler's settings, `PartsConfig` for parts of other files.

    The options of `ModelOptions`, and LoRAs, are the model's; `teacher` and `beside` take none but `allow_non_finite`.

    Attributes:
        model: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        prompts: a `.txt` or `.csv` file of prompts; or give `prompt`.
        prompt: a single prompt; or give `prompts`.
        images_per_prompt: image number i is of prompt i // images_per_prompt.
        init: an image, or a folder of images in the order of their names, to begin from; each is used with the one
            prompt, or with its own if there are as many prompts. An image keeps its size, rounded down to whole
            latents, unless `resolution`, `height` or `width` is given.
        strength: how much of the steps an image to begin from goes through, above 0 and up to 1.
        latents: a `.npy` or `.safetensors` file of starting noise, [N, h, w, C] or [N, C, h, w]; empty: drawn from
            `seed`.
        teacher: the model whose denoiser makes the first `switch_at` steps.
        beside: more models, whose images of the same prompts and noise go to `beside_1/`, `beside_2/`, ...; the
            settings and parts apply to all models.
        protocol: bk_sdm or mlperf_sd: a published evaluation, which then decides sampler, steps, guidance, sizes and
            format; empty: none.
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
    """Raises `InputError` for a setting that can't be used whatever the model is; reads no files."""
    require_sampling(config)
    require_dtype(config.dtype)
    require_parts(config)
    require_loras(config)
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
