"""Reads CLIP (both towers) in the layouts of Transformers and OpenCLIP; writes Transformers' Flax layout."""

import dataclasses
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from bksdm_jax.base.errors import InputError, finite_number, shown
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.base.folders import atomic_folder
from bksdm_jax.base.paths import local_path
from bksdm_jax.formats.clip_json import clip_from_transformers, clip_to_transformers
from bksdm_jax.formats.locate import SUFFIXES, TRANSFORMERS_STEMS, choose_files, other_weights, weight_files
from bksdm_jax.formats.open_clip import (
    clip_from_open_clip,
    infer_open_clip,
    normalisation_from_open_clip,
    transformers_tensors,
)
from bksdm_jax.formats.stored import StoredTensor
from bksdm_jax.formats.weights import read_tensors, read_weights, require_finite, write_msgpack
from bksdm_jax.models.clip_pair import CLIPConfig, clip_parameter_shapes
from bksdm_jax.pipelines.autoencoder import TENSOR_FILES
from bksdm_jax.pipelines.hub import hub_folder, is_hub_id
from bksdm_jax.pipelines.single_file import tokenizer_folder
from bksdm_jax.pipelines.tokenizer import TOKENIZER_FILES, Tokenizer, caption_length, load_tokenizer

MEAN, STD = (0.48145466, 0.4578275, 0.40821073), (0.26862954, 0.26130258, 0.27577711)
"""OpenAI's normalisation of pixels in [0, 1]: mean and standard deviation of red, green and blue."""
_CONFIG, _PREPROCESSOR, _OPEN_CLIP_CONFIG = "config.json", "preprocessor_config.json", "open_clip_config.json"
_OPEN_CLIP_FILES = ("open_clip_model.safetensors", "open_clip_pytorch_model.safetensors", "open_clip_pytorch_model.bin")
_WEIGHTS = "flax_model.msgpack"
_EXAMPLE = "expected CLIP such as laion/CLIP-ViT-g-14-laion2B-s34B-b88K of the hub"
_TRAINED_IN_PARALLEL = "module."


@dataclasses.dataclass(frozen=True)
class LoadedCLIP:
    """CLIP as read from files.

    Attributes:
        config: the architecture.
        params: nested by Flax names, in the files' dtypes.
        tokenizer: its tokenizer.
        mean, std: by which pixels in [0, 1] are normalised.
        name: as it was asked for.
        files: the files of its weights.
    """

    config: CLIPConfig
    params: dict[str, Any]
    tokenizer: Tokenizer
    mean: tuple[float, float, float] = MEAN
    std: tuple[float, float, float] = STD
    name: str = ""
    files: tuple[Path, ...] = ()


def load_clip(name: str | Path, tokenizer: str = "", activation: str = "", revision: str = "") -> LoadedCLIP:
    """Reads CLIP.

    Of a folder with both layouts, the first of these weights are read: Transformers' safetensors, OpenCLIP's, others of
    Transformers. A single file has no config: the architecture follows from the shapes (`infer_open_clip`), and the
    normalisation is OpenAI's.

    Args:
        name: a folder or hub id in Transformers' layout of `CLIPModel` or in OpenCLIP's (`open_clip_config.json`); or
            a single file of OpenCLIP's weights (a key of `TENSOR_FILES`).
        tokenizer: if the folder has none: folder or hub id; empty: CLIP's, from the hub.
        activation: of a single file: `gelu` or `quick_gelu`; may be empty for ViT-g and G.
        revision: branch, tag or commit of a hub model; empty: its default branch.

    Raises:
        InputError: a file is missing, damaged, of another network, or doesn't match the config.
    """
    path = hub_folder(str(name), revision, clip_files) if is_hub_id(str(name)) else local_path("clip", name)
    if path.is_dir():
        loaded = _read_folder(path, tokenizer)
    elif path.is_file():
        loaded = _read_file(path, tokenizer, activation)
    else:
        raise InputError(f"{path}: no such folder or file; {_EXAMPLE}")
    return dataclasses.replace(loaded, name=str(name))


def clip_files(names: Collection[str]) -> list[str]:
    """Of all file names of a repository, those that `load_clip` reads."""
    settings = (_CONFIG, _PREPROCESSOR, _OPEN_CLIP_CONFIG, *TOKENIZER_FILES)
    return [*(name for name in settings if name in names), *_chosen(names)]


def _chosen(names: Collection[str]) -> tuple[str, ...]:
    """The names of the files of weights, with the index of shards, in the preferred layout and format."""
    open_clip = [name for name in _OPEN_CLIP_FILES if name in names and _OPEN_CLIP_CONFIG in names][:1]
    for suffix in SUFFIXES if _CONFIG in names else ():
        files = choose_files(names, {suffix: TRANSFORMERS_STEMS[suffix]}, "")
        if files and not (open_clip and suffix != ".safetensors"):
            return files
    return tuple(open_clip)


def _read_folder(folder: Path, tokenizer: str) -> LoadedCLIP:
    names = {path.name for path in folder.iterdir()}
    chosen = _chosen(names)
    if not chosen:
        raise InputError(f"{folder}: no {_missing(names)}{other_weights(folder, TRANSFORMERS_STEMS)}; {_EXAMPLE}")
    if chosen[0] in _OPEN_CLIP_FILES:
        file = folder / _OPEN_CLIP_CONFIG
        json, path = read_json(file), folder / chosen[0]
        config = clip_from_open_clip(json, str(file))
        means = normalisation_from_open_clip(json, str(file))
        files, params = (path,), _read_open_clip(path, config)
    else:
        file = folder / _CONFIG
        config = clip_from_transformers(read_json(file), str(file))
        suffix = next(suffix for suffix in SUFFIXES if chosen[-1].endswith(suffix))
        files = weight_files(folder, {suffix: TRANSFORMERS_STEMS[suffix]}, "")
        params = read_weights(files, clip_parameter_shapes(config))
        file = folder / _PREPROCESSOR
        options = read_json(file) if file.is_file() else {}
        means = options.get("image_mean"), options.get("image_std")
    own = not tokenizer and any(name in names for name in ("vocab.json", "tokenizer.json"))
    words = folder if own else tokenizer_folder(folder, tokenizer)
    mean, std = _normalisation(means, str(file))
    return LoadedCLIP(config, params, _tokenizer(words, config), mean, std, files=files)


def _missing(names: Collection[str]) -> str:
    if _CONFIG not in names and _OPEN_CLIP_CONFIG not in names:
        return f"{_CONFIG} or {_OPEN_CLIP_CONFIG}"
    theirs = [f"{stem}{suffix}" for suffix, stem in TRANSFORMERS_STEMS.items()] if _CONFIG in names else []
    return " or ".join([*theirs, *(_OPEN_CLIP_FILES if _OPEN_CLIP_CONFIG in names else ())])


def _read_file(path: Path, tokenizer: str, activation: str) -> LoadedCLIP:
    if path.suffix.lower() not in TENSOR_FILES:
        raise InputError(f"{path}: a file of unknown format; expected a folder, or {', '.join(TENSOR_FILES)}")
    shapes = {name: tensor.shape for name, tensor in _index(path).items()}
    try:
        config = infer_open_clip(shapes, str(path), activation)
    except InputError as error:
        hint = (
            "; of weights in Transformers' names give the folder"
            if "vision_model.post_layernorm.bias" in shapes
            else ""
        )
        raise InputError(f"{error}{hint}; {_EXAMPLE}") from error
    words = tokenizer_folder(path, tokenizer)
    return LoadedCLIP(config, _read_open_clip(path, config), _tokenizer(words, config), files=(path,))


def _index(path: Path) -> dict[str, StoredTensor]:
    """The tensors by name, without the prefix that parallel training adds."""
    stored = TENSOR_FILES[path.suffix.lower()](path)
    return {name.removeprefix(_TRAINED_IN_PARALLEL): tensor for name, tensor in stored.items()}


def _read_open_clip(path: Path, config: CLIPConfig) -> dict[str, Any]:
    tensors = transformers_tensors(_index(path), config, str(path))
    return read_tensors(str(path), tensors, clip_parameter_shapes(config))


def _tokenizer(folder: Path, config: CLIPConfig) -> Tokenizer:
    tokenizer = load_tokenizer(folder, caption_length(folder, config.text.positions))
    if len(tokenizer) > config.text.vocab_size:
        raise InputError(
            f"{folder}: a tokenizer of {len(tokenizer)} tokens, but CLIP's text tower knows {config.text.vocab_size}"
        )
    return tokenizer


def _normalisation(found: tuple[Any, Any], source: str) -> tuple[tuple[float, float, float], ...]:
    """Mean and standard deviation as in a file, or OpenAI's where it has none."""
    checked = []
    for key, given, default, least in (("mean", found[0], MEAN, 0), ("std", found[1], STD, 1e-3)):
        value = default if given is None else given
        if not isinstance(value, (list, tuple)) or len(value) != 3:
            raise InputError(f"{source}: {key} is {shown(value)}; expected three numbers")
        checked.append(tuple(finite_number(source, key, number, least, 1) for number in value))
    return tuple(checked)


def write_clip(target: Path, config: CLIPConfig, params: Mapping[str, Any], tokenizer: Path) -> None:
    """Writes a folder in Transformers' Flax layout atomically; `tokenizer` is the folder of the tokenizer's files.

    Raises `InputError` if weights aren't finite, or the folder can't be written.
    """
    require_finite(target, "clip", params)
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
