"""Settings of `launch.convert_lora`; nothing here imports JAX."""

import dataclasses

from bksdm_jax.base.errors import InputError, known_name
from bksdm_jax.formats.stored import FLOATS
from bksdm_jax.pipelines.config import LORA_LAYOUTS

DTYPES = tuple(name for name in FLOATS if name != "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class ConvertLoraConfig:
    """A teacher's LoRA to convert.

    Attributes:
        lora: the teacher's LoRA: a file, a folder as of PEFT or Diffusers, or a hub id.
        model: the student: its folder, its `removal_plan.json`, or a hub id.
        layout: of the result: `kohya`, which most tools read, or `diffusers`.
        save_dtype: of its matrices: float16, bfloat16 or float32.
        allow_unplaced_lora: tensors that belong to no block of the teacher are left out, with a warning, instead of
            being refused.
    """

    lora: str
    model: str
    layout: str = "kohya"
    save_dtype: str = "float16"
    allow_unplaced_lora: bool = False


def require_conversion(config: ConvertLoraConfig) -> None:
    """Raises `InputError`, with the key, for a setting that can't be used; reads no files."""
    for key in ("lora", "model"):
        if not getattr(config, key):
            raise InputError(f"{key}: empty; give --config.{key}=...")
    known_name("config", "layout", config.layout, LORA_LAYOUTS)
    known_name("config", "save_dtype", config.save_dtype, DTYPES)
