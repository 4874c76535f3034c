"""Reads and writes CLIP (both towers) as a folder in Transformers' Flax layout."""

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import atomic_folder, read_json, write_json
from bksdm_jax.formats.clip_json import clip_from_transformers, clip_to_transformers
from bksdm_jax.formats.weights import read_weights, write_msgpack
from bksdm_jax.models.clip_pair import CLIPConfig, clip_parameter_shapes
from bksdm_jax.pipelines.tokenizer import Tokenizer, load_tokenizer

_WEIGHTS = "flax_model.msgpack"


@dataclasses.dataclass(frozen=True)
class LoadedCLIP:
    """Architecture, parameters (nested by Flax names, in the file's dtypes) and tokenizer."""

    config: CLIPConfig
    params: dict[str, Any]
    tokenizer: Tokenizer


def load_clip(folder: str | Path) -> LoadedCLIP:
    """Reads `config.json`, `flax_model.msgpack` and the tokenizer's files.

    Raises `InputError` if a file is missing, damaged, or doesn't match the config.
    """
    folder = Path(folder).expanduser()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such CLIP folder; expected config.json, {_WEIGHTS} and tokenizer files")
    config = clip_from_transformers(read_json(folder / "config.json"), str(folder / "config.json"))
    params = read_weights([folder / _WEIGHTS], clip_parameter_shapes(config))
    return LoadedCLIP(config, params, load_tokenizer(folder, config.text.max_length))


def write_clip(target: Path, config: CLIPConfig, params: Mapping[str, Any], tokenizer: Path) -> None:
    """Writes such a folder atomically; `tokenizer` is the folder of the tokenizer's files."""
    size = config.vision.image_size
    preprocessor = {
        "image_processor_type": "CLIPImageProcessor",
        "do_center_crop": True,
        "crop_size": {"height": size, "width": size},
        "do_resize": True,
        "size": {"shortest_edge": size},
        "do_normalize": True,
        "image_mean": [0.5] * 3,  # images in [-1, 1]
        "image_std": [0.5] * 3,
    }
    with atomic_folder(target) as temporary:
        shutil.copytree(tokenizer, temporary, dirs_exist_ok=True)
        write_json(temporary / "config.json", clip_to_transformers(config))
        write_json(temporary / "preprocessor_config.json", preprocessor)
        write_msgpack(temporary / _WEIGHTS, params)
