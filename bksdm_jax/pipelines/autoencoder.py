"""Loads an autoencoder alone: a folder, a single file, or one on the hub."""

import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from bksdm_jax.base.errors import InputError, known_name
from bksdm_jax.base.files import read_json
from bksdm_jax.base.paths import local_path
from bksdm_jax.formats.infer import infer_vae
from bksdm_jax.formats.locate import DIFFUSERS_STEMS, choose_files, weight_files
from bksdm_jax.formats.original_names import VAE, vae_modules
from bksdm_jax.formats.safetensors_file import index_safetensors
from bksdm_jax.formats.stored import StoredTensor
from bksdm_jax.formats.tiny_vae_json import TINY_CLASS, tiny_vae_from_diffusers, tiny_vae_to_diffusers
from bksdm_jax.formats.torch_file import index_torch
from bksdm_jax.formats.vae_json import vae_from_diffusers, vae_to_diffusers
from bksdm_jax.formats.weights import INDEXERS, read_tensors, read_weights, tell_unused
from bksdm_jax.models.tiny_vae import TinyVAEConfig, tiny_vae_parameter_shapes
from bksdm_jax.models.vae import vae_parameter_shapes
from bksdm_jax.pipelines.embedded import TEACHER, teacher_folder
from bksdm_jax.pipelines.hub import hub_folder, is_hub_id
from bksdm_jax.pipelines.pipeline import Network
from bksdm_jax.pipelines.single_file import pass_over, taken

TENSOR_FILES: dict[str, Callable[[Path], dict[str, StoredTensor]]] = {
    ".safetensors": index_safetensors,
    **dict.fromkeys((".ckpt", ".pt", ".pth", ".bin"), index_torch),
}
"""Suffix of a single file -> file -> its tensors by name."""
Tensors = Mapping[str, StoredTensor]
_CONFIG, _INSIDE = "config.json", "vae"
_CLASSES = ("AutoencoderKL", "FlaxAutoencoderKL", TINY_CLASS)
_TINY_STEMS = {suffix: stem for suffix, stem in DIFFUSERS_STEMS.items() if suffix != ".msgpack"}
_HALVES = {"encoder": 0, "decoder": 1}
"""Half of TAESD -> its first layer in TAESD's own files; the decoder's layer 0 is the clamp, which Diffusers omits."""


def load_autoencoder(name: str, allow_non_finite: bool = False) -> Network:
    """Reads an autoencoder: Diffusers' `AutoencoderKL`, or TAESD (`AutoencoderTiny`).

    A single file has no config: widths and depths of an `AutoencoderKL` follow from the weights, its scaling factor is
    SD's 0.18215; of TAESD it must have the original's architecture.

    Args:
        name: a folder of an autoencoder, or of a pipeline, whose `vae/` is read; a hub id of one of these;
            `shapes_teacher`; or a single file (a key of `TENSOR_FILES`) in Diffusers' names or the original ones, which
            may hold other networks too. `taesd_decoder.safetensors` needs `taesd_encoder.safetensors` beside it.
        allow_non_finite: as in `ModelSource`.

    Raises:
        InputError: it doesn't exist, is no such autoencoder, or is damaged.
    """
    if name == TEACHER:
        return _read_folder(teacher_folder(), allow_non_finite)
    if is_hub_id(name):
        return _read_folder(hub_folder(name, "", autoencoder_files), allow_non_finite)
    path = local_path("vae", name).absolute()
    if path.is_dir():
        return _read_folder(path, allow_non_finite)
    if not path.is_file():
        raise InputError(f"{path}: no such folder or file; expected an autoencoder")
    return _read_file(path, allow_non_finite)


def autoencoder_files(names: Collection[str]) -> list[str]:
    """Of all file names of a repository, those that `load_autoencoder` reads."""
    prefix = f"{_INSIDE}/" if f"{_INSIDE}/{_CONFIG}" in names else ""
    inside = {name.removeprefix(prefix) for name in names if name.startswith(prefix)}
    return [f"{prefix}{name}" for name in (_CONFIG, *choose_files(inside, DIFFUSERS_STEMS, "")) if name in inside]


def _read_folder(path: Path, allow_non_finite: bool) -> Network:
    folder = path / _INSIDE if (path / _INSIDE / _CONFIG).is_file() else path
    file = folder / _CONFIG
    if not file.is_file():
        raise InputError(f"{path}: no {_CONFIG}; expected an autoencoder's folder, or a pipeline's with {_INSIDE}/")
    json = read_json(file)
    class_name = known_name(str(file), "_class_name", json.get("_class_name", _CLASSES[0]), _CLASSES)
    stems = _TINY_STEMS if class_name == TINY_CLASS else DIFFUSERS_STEMS
    files = weight_files(folder, stems, "")
    if not files:
        expected = " or ".join(f"{stem}{suffix}" for suffix, stem in stems.items())
        raise InputError(f"{folder}: no weights; expected {expected}, or give a single file")
    if class_name == TINY_CLASS:
        tensors = {name: tensor for one in files for name, tensor in INDEXERS[one.suffix](one).items()}
        return _tiny(str(folder), tensors, tiny_vae_from_diffusers(json, str(file)), allow_non_finite, json)
    config = vae_from_diffusers(json, str(file))
    return Network(config, read_weights(files, vae_parameter_shapes(config), allow_non_finite), json)


def _read_file(path: Path, allow_non_finite: bool) -> Network:
    if path.suffix.lower() not in TENSOR_FILES:
        raise InputError(f"{path}: a file of unknown format; expected a folder, or {', '.join(TENSOR_FILES)}")
    tensors = TENSOR_FILES[path.suffix.lower()](path)
    if any(re.match(r"\d+\.", name) for name in tensors):
        return _tiny(str(path), _both_halves(path, tensors), TinyVAEConfig(), allow_non_finite)
    if any(re.match(r"(encoder|decoder)\.layers\.", name) for name in tensors):
        return _tiny(str(path), tensors, TinyVAEConfig(), allow_non_finite)
    if any(name.startswith(VAE) for name in tensors):
        tell_unused(str(path), [name for name in tensors if not name.startswith(VAE)])
        tensors = {name.removeprefix(VAE): tensor for name, tensor in tensors.items() if name.startswith(VAE)}
    config = infer_vae({name: tensor.shape for name, tensor in tensors.items()}, str(path))
    shapes = vae_parameter_shapes(config)
    if not any(name.startswith("encoder.down_blocks.") for name in tensors):
        rest = {f"{VAE}{name}": tensor for name, tensor in tensors.items()}
        tensors = taken(rest, shapes, vae_modules(config))
        pass_over(path, rest)
    return Network(config, read_tensors(str(path), tensors, shapes, allow_non_finite), vae_to_diffusers(config))


def _tiny(
    source: str,
    tensors: Tensors,
    config: TinyVAEConfig,
    allow_non_finite: bool,
    json: dict[str, Any] | None = None,
) -> Network:
    """Each half by itself: CLIP's layers have the same names as the encoder's."""
    expected, params = tiny_vae_parameter_shapes(config), {}
    for half in _HALVES:
        own = {name.removeprefix(f"{half}."): tensor for name, tensor in tensors.items() if name.startswith(f"{half}.")}
        params[half] = read_tensors(f"{source}, {half}", own, expected[half], allow_non_finite)
    tell_unused(source, [name for name in tensors if name.partition(".")[0] not in _HALVES])
    return Network(config, params, tiny_vae_to_diffusers(config) if json is None else json)


def _both_halves(path: Path, tensors: Tensors) -> dict[str, StoredTensor]:
    """The tensors of TAESD's own two files, of which `path` is one, by Diffusers' names."""
    half, other = ("encoder", "decoder") if "0.weight" in tensors else ("decoder", "encoder")
    beside = path.with_name(path.name.replace(half, other))
    if beside == path or not beside.is_file():
        raise InputError(
            f"{path}: TAESD's {half} alone; expected the {other} beside it, with {other!r} in its name for {half!r}"
        )
    found = {}
    for one, table in ((half, tensors), (other, TENSOR_FILES[path.suffix.lower()](beside))):
        for name, tensor in table.items():
            number, _, rest = name.partition(".")
            if number.isdecimal():
                found[f"{one}.layers.{int(number[:9]) - _HALVES[one]}.{rest}"] = tensor
    return found
