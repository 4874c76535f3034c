"""Reads DINO and DINOv2: a folder or hub id in Transformers' layout, or a single file of the authors' own."""

import dataclasses
from collections.abc import Collection
from pathlib import Path
from typing import Any

from bksdm_jax.base.errors import InputError, whole_number
from bksdm_jax.base.files import read_json
from bksdm_jax.base.paths import local_path
from bksdm_jax.formats.limits import MOST_LAYERS
from bksdm_jax.formats.locate import TRANSFORMERS_STEMS, choose_files, other_weights, weight_files
from bksdm_jax.formats.vit_json import vit_from_transformers
from bksdm_jax.formats.vit_names import infer_vit, own_names
from bksdm_jax.formats.weights import INDEXERS, read_tensors
from bksdm_jax.models.vit import ViTConfig, vit_parameter_shapes
from bksdm_jax.pipelines.autoencoder import TENSOR_FILES
from bksdm_jax.pipelines.hub import hub_folder, is_hub_id

_CONFIG = "config.json"
_STEMS = {suffix: stem for suffix, stem in TRANSFORMERS_STEMS.items() if suffix != ".msgpack"}
_EXAMPLE = "expected facebook/dino-vits16, facebook/dinov2-large or their like of the hub"


@dataclasses.dataclass(frozen=True)
class LoadedViT:
    """A vision transformer as read from files.

    Attributes:
        config: the architecture.
        params: nested by Flax names, in the files' dtypes.
        name: as it was asked for.
        files: the files of its weights.
    """

    config: ViTConfig
    params: dict[str, Any]
    name: str = ""
    files: tuple[Path, ...] = ()


def load_vit(name: str | Path, revision: str = "") -> LoadedViT:
    """Reads DINO or DINOv2.

    Args:
        name: a folder or hub id of Transformers' `ViTModel`, `Dinov2Model` or `Dinov2WithRegistersModel`; or a single
            file (a key of `TENSOR_FILES`) such as `dino_deitsmall16_pretrain.pth` or `dinov2_vitl14_pretrain.pth`,
            whose architecture follows from the shapes.
        revision: branch, tag or commit of a hub model; empty: its default branch.

    Raises:
        InputError: a file is missing, damaged, of another network, or doesn't match the config.
    """
    path = hub_folder(str(name), revision, vit_files) if is_hub_id(str(name)) else local_path("vit", name)
    if path.is_dir():
        return _read_folder(path, str(name))
    if not path.is_file():
        raise InputError(f"{path}: no such folder or file; {_EXAMPLE}")
    if path.suffix.lower() not in TENSOR_FILES:
        raise InputError(f"{path}: a file of unknown format; expected a folder, or {', '.join(TENSOR_FILES)}")
    stored = own_names(TENSOR_FILES[path.suffix.lower()](path), str(path))
    try:
        config = infer_vit({key: tensor.shape for key, tensor in stored.items()}, str(path))
    except InputError as error:
        raise InputError(f"{error}; {_EXAMPLE}") from error
    whole_number(str(path), "the number of layers", config.layers, 1, MOST_LAYERS)
    return LoadedViT(config, read_tensors(str(path), stored, vit_parameter_shapes(config)), str(name), (path,))


def vit_files(names: Collection[str]) -> list[str]:
    """Of all file names of a repository, those that `load_vit` reads."""
    return [name for name in (_CONFIG, *choose_files(names, _STEMS, "")) if name in names]


def _read_folder(folder: Path, name: str) -> LoadedViT:
    file = folder / _CONFIG
    if not file.is_file():
        raise InputError(f"{folder}: no {_CONFIG}; {_EXAMPLE}")
    config = vit_from_transformers(read_json(file), str(file))
    files = weight_files(folder, _STEMS, "")
    if not files:
        expected = " or ".join(f"{stem}{suffix}" for suffix, stem in _STEMS.items())
        raise InputError(f"{folder}: no weights; expected {expected}{other_weights(folder, _STEMS)}")
    stored = {key: tensor for path in files for key, tensor in INDEXERS[path.suffix](path).items()}
    params = read_tensors(str(folder), own_names(stored, str(folder)), vit_parameter_shapes(config))
    return LoadedViT(config, params, name, files)
