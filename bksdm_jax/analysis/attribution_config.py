"""The settings of `launch.attribute`; nothing here imports JAX."""

import dataclasses

from bksdm_jax.base.choices import require_dtype
from bksdm_jax.base.errors import InputError, finite_number, known_name, whole_number
from bksdm_jax.diffusion.choices import SAMPLERS, SCHEDULER
from bksdm_jax.pipelines.source import ModelOptions
from bksdm_jax.sampling.config import MOST_RESOLUTION, MOST_SEED, require_text

MOST_MODELS = 8
"""Students beside a teacher."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttributionConfig(ModelOptions):
    """Whose maps of which words are made; the options of `ModelOptions` are the teacher's.

    Attributes:
        teacher: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        models: the students, named like the teacher, up to 8; they take no options but `allow_non_finite`.
        prompts: a `.txt` or `.csv` file of prompts; or give `texts`.
        texts: the prompts themselves; or give `prompts`.
        images: number of prompts used, from the first on.
        steps: of the sampler.
        guidance_scale: of classifier-free guidance; maps are of its conditional half. Values up to 1 switch it off.
        sampler: as of `launch.sample`; `scheduler`: each model's own.
        resolution: pixels; 0: the teacher's own.
        seed: of the starting noise, which is the same for all models.
        threshold: a map marks the pixels with at least this share of its largest value, for intersection over union.
        dtype: of the networks' computations, `float32` or `bfloat16`; weights of attention are float32.
        batch_size: images of a call on each device.
    """

    teacher: str
    models: tuple[str, ...] = ()
    prompts: str = ""
    texts: tuple[str, ...] = ()
    images: int = 16
    steps: int = 25
    guidance_scale: float = 7.5
    sampler: str = SCHEDULER
    resolution: int = 0
    seed: int = 0
    threshold: float = 0.4
    dtype: str = "float32"
    batch_size: int = 4


def require_attribution(config: AttributionConfig) -> None:
    """Raises `InputError`, with the key, for a setting that can't be used; reads no files."""
    if not 0 < len(config.models) <= MOST_MODELS:
        raise InputError(
            f"models: {len(config.models)} students; expected 1 to {MOST_MODELS}: --config.models=\"('DIR',)\""
        )
    for name in config.models:
        if not isinstance(name, str) or not name:
            raise InputError(f"models: {name!r}; expected names of models, as for teacher")
    if bool(config.prompts) == bool(config.texts):
        raise InputError("prompts: give either prompts (a .txt or .csv file) or texts (prompts)")
    for text in config.texts:
        if not isinstance(text, str):
            raise InputError(f"texts: {text!r}; expected prompts")
        require_text("texts", text)
    known_name("config", "sampler", config.sampler, (SCHEDULER, *SAMPLERS))
    require_dtype(config.dtype)
    for key in ("images", "steps", "batch_size"):
        whole_number("config", key, getattr(config, key))
    whole_number("config", "resolution", config.resolution, 0, MOST_RESOLUTION)
    whole_number("config", "seed", config.seed, 0, MOST_SEED)
    finite_number("config", "guidance_scale", config.guidance_scale, 0)
    finite_number("config", "threshold", config.threshold, 0, 1)
