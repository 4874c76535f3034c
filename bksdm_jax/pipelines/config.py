"""Settings of commands that read pipelines with other parts, or write pipelines; nothing here imports JAX."""

import dataclasses

from bksdm_jax.base.errors import InputError, finite_number, one_of, shown, whole_number
from bksdm_jax.formats.stored import FLOATS

FOLDERS = {"safetensors": ".safetensors", "flax": ".msgpack"}
"""Format of a folder -> suffix of its weights."""
FILES = {"single_file": False, "single_file_spaced": True}
"""Format of a file -> numbering, as in `unet_modules`."""
FORMATS = (*FOLDERS, *FILES)
LORA_LAYOUTS = ("kohya", "diffusers")
_DTYPES = tuple(name for name in FLOATS if name != "float64")


@dataclasses.dataclass(frozen=True, kw_only=True)
class PartsConfig:
    """What replaces parts of a pipeline, as settings of a command.

    Attributes:
        vae: an autoencoder or TAESD: its folder or a pipeline's, a hub id, or a single file; its own scaling factor
            counts. Empty: the pipeline's.
        clip_skip: layers at the end of the text encoder that are left out, before its final norm, as Diffusers counts
            them: 1 is what WebUIs call 2. As there, and unlike Diffusers, it applies to negative prompts too.
        embeddings: files of textual inversion, each `FILE` or `TOKEN=FILE`; without `TOKEN` it is the one in the file,
            or the file's name.
    """

    vae: str = ""
    clip_skip: int = 0
    embeddings: tuple[str, ...] = ()


def require_parts(config: PartsConfig) -> None:
    """Raises `InputError`, with the key, for a setting that no pipeline can have; reads no files."""
    whole_number("config", "clip_skip", config.clip_skip, 0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoraOptions:
    """LoRAs that are merged into a model, as settings of a command.

    Attributes:
        lora: LoRAs of the model, each `NAME` or `NAME=WEIGHT` with a file (safetensors, or PyTorch's), a folder as of
            PEFT or Diffusers, or a hub id; they are merged into its U-Net and text encoder, in this order. As in PEFT,
            a DoRA's magnitudes count fully whatever its weight.
        allow_unplaced_lora: tensors of a LoRA that have no place in the model are left out, with a warning, instead of
            being refused.
    """

    lora: tuple[str, ...] = ()
    allow_unplaced_lora: bool = False


LORA_MAY_CHANGE = ("lora", "allow_unplaced_lora")
"""Keys that may differ when a run continues, since what they name is recorded too."""


def split_lora(text: str) -> tuple[str, float]:
    """Name and weight of one of `LoraOptions.lora`: a number behind the last `=` is a weight.

    Raises `InputError` if there is no name, or the weight isn't finite.
    """
    name, mark, weight = text.rpartition("=") if isinstance(text, str) else ("", "", "")
    if not (name.strip() if mark else weight.strip()):
        raise InputError(f"lora: {shown(text)}; expected NAME or NAME=WEIGHT")
    try:
        value = float(weight) if mark else 1.0
    except ValueError:
        return text, 1.0
    return name if mark else text, finite_number("config", f"the weight of lora {shown(text)}", value)


def require_loras(options: LoraOptions) -> None:
    """Raises `InputError` for a LoRA that can't be one; reads no files."""
    for text in options.lora:
        split_lora(text)


@dataclasses.dataclass(frozen=True)
class SaveConfig:
    """How a pipeline is written.

    Attributes:
        format: one of `FORMATS`: a folder for PyTorch Diffusers (`safetensors`) or for Diffusers' Flax classes
            (`flax`), or one file in the original layout, with its configs beside it (`single_file`, or
            `single_file_spaced` with the block numbers that stable-diffusion.cpp expects of small U-Nets).
        dtype: `float32`, `float16` or `bfloat16`; empty: the U-Net in float32, the other networks in the teacher's.
        safety_checker: copy the teacher's safety checker and feature extractor, if any (folders only).
    """

    format: str = "safetensors"
    dtype: str = ""
    safety_checker: bool = True


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaveOptions:
    """`SaveConfig` as settings of a command.

    Attributes:
        format: of the student: a folder for PyTorch Diffusers (`safetensors`) or for Diffusers' Flax classes (`flax`),
            or one file in the original layout, with its configs beside it (`single_file`, or `single_file_spaced` with
            the block numbers that stable-diffusion.cpp expects of small U-Nets).
        save_dtype: of its weights, `float32`, `float16` or `bfloat16`; empty: the U-Net in float32, the other networks
            in the teacher's.
        safety_checker: copy the teacher's safety checker and feature extractor, if any (folders only).
    """

    format: str = "safetensors"
    save_dtype: str = ""
    safety_checker: bool = True

    def save_config(self) -> SaveConfig:
        """These settings as a `SaveConfig`."""
        return SaveConfig(self.format, self.save_dtype, self.safety_checker)


def require_save(config: SaveConfig) -> None:
    """Raises `InputError` for an unknown format or dtype."""
    if config.format not in FORMATS:
        raise one_of("format", config.format, FORMATS)
    if config.dtype and config.dtype not in _DTYPES:
        raise one_of("save_dtype", config.dtype, _DTYPES)
