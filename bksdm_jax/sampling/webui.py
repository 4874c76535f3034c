"""How an image was made, as text that WebUIs read from PNG files."""

import hashlib
import json
from pathlib import Path

from bksdm_jax.base.files import file_sha256
from bksdm_jax.diffusion.choices import SAMPLERS
from bksdm_jax.diffusion.samplers import kind_of, with_options
from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.pipelines.config import split_lora
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.sampling.config import SampleConfig

NAMES = {
    "ddim": "DDIM",
    "pndm": "PLMS",
    "dpmpp_2m": "DPM++ 2M",
    "dpmpp_2m_karras": "DPM++ 2M Karras",
    "dpmpp_2m_sde": "DPM++ 2M SDE",
    "dpmpp_2m_sde_karras": "DPM++ 2M SDE Karras",
    "euler": "Euler",
    "euler_ancestral": "Euler a",
    "heun": "Heun",
    "unipc": "UniPC",
    "lcm": "LCM",
}
"""WebUIs' names of samplers, where they have one."""
_HASH_LETTERS = 10


def sampler_name(sampler: str, schedule: ScheduleConfig) -> str:
    """WebUIs' name of what a sampler is with the options of the model's file, or the one of `SAMPLERS`."""
    kind, solver = kind_of(sampler, schedule), vars(with_options(schedule, sampler).solver)
    spacing = solver["sigma_spacing"] or ""
    fitting = [
        (len(options), name)
        for name, (other, options) in SAMPLERS.items()
        if other == kind
        and all(solver[key] == value for key, value in options.items())
        and options.get("sigma_spacing", "") == spacing
    ]
    name = max(fitting)[1] if fitting else " ".join(filter(None, (kind, spacing)))
    return NAMES.get(name, name)


def model_facts(name: str, pipeline: Pipeline, identity: dict[str, str]) -> dict[str, str]:
    """The model's hash, of a single file that of its bytes as WebUIs have it, and its name without folders."""
    if pipeline.path.is_file():
        digest, label = file_sha256(pipeline.path), pipeline.path.stem
    else:
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
        label = Path(name).name or pipeline.path.name
    return {"Model hash": digest[:_HASH_LETTERS], "Model": label}


def parameters(
    config: SampleConfig, sampler: str, model: dict[str, str], prompt: str, index: int, size: tuple[int, int]
) -> str:
    """The text for one image.

    The seed alone doesn't decide its noise, so its number is there too. No longer than two prompts of `MOST_LETTERS`
    and a few hundred characters.

    Args:
        config: how it was made.
        sampler: its name, see `sampler_name`.
        model: see `model_facts`.
        prompt: the text.
        index: the image's number.
        size: height and width in pixels.
    """
    loras = [split_lora(text) for text in config.lora]
    facts = {
        "Steps": str(config.steps),
        "Sampler": sampler,
        "CFG scale": f"{config.guidance_scale:g}",
        "Seed": str(config.seed),
        "Size": f"{size[1]}x{size[0]}",
        **model,
        **({"Denoising strength": f"{config.strength:g}"} if config.init else {}),
        **({"LoRA": ", ".join(f"{Path(name).name} {weight:g}" for name, weight in loras)} if loras else {}),
        **({"Clip skip": str(config.clip_skip + 1)} if config.clip_skip else {}),
        "Image": str(index),
    }
    negative = [f"Negative prompt: {config.negative_prompt}"] if config.negative_prompt else []
    last = ", ".join(f"{key}: {_quoted(value)}" for key, value in facts.items())
    text = "\n".join([prompt, *negative, last]).replace("\0", "\ufffd")  # NUL would end the chunk's text
    return text.encode(errors="replace").decode()  # of names that aren't UTF-8


def _quoted(value: str) -> str:
    """As WebUIs quote what would read as several values."""
    return json.dumps(value, ensure_ascii=False) if set(value) & set(',:"\n\r') else value
