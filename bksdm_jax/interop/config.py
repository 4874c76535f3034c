"""The settings of `launch.compare`; nothing here imports JAX or PyTorch."""

import dataclasses

from bksdm_jax.base.errors import InputError, known_name, shown, whole_number
from bksdm_jax.diffusion.choices import SAMPLERS, SCHEDULER
from bksdm_jax.pipelines.source import ModelOptions


@dataclasses.dataclass(frozen=True)
class CompareConfig(ModelOptions):
    """What to compare.

    Attributes:
        model: pipeline folder, single file, id on the hub, or `shapes_teacher`.
        prompts: one image each.
        seed: of the noise.
        steps: sampler steps; 0: compare the networks only, no images.
        sampler: as of `launch.sample`, such as ddim, made from the model's scheduler by `from_config`, or `scheduler`:
            the model's own.
        guidance_scale: of classifier-free guidance.
        resolution: pixels; 0: the model's own.
    """

    model: str
    prompts: tuple[str, ...] = ("a photo of a cat", "a red bicycle in front of a house")
    seed: int = 0
    steps: int = 25
    sampler: str = SCHEDULER
    guidance_scale: float = 7.5
    resolution: int = 0


def require_compare(config: CompareConfig) -> None:
    """Raises `InputError`, with the key, for a setting that can't be used."""
    if not config.prompts or not all(isinstance(prompt, str) for prompt in config.prompts):
        raise InputError(f"prompts: {shown(config.prompts)}; give at least one, --config.prompts=\"('a cat',)\"")
    known_name("config", "sampler", config.sampler, (SCHEDULER, *SAMPLERS))
    for key in ("steps", "resolution", "seed"):
        whole_number("config", key, getattr(config, key), 0)
