"""Reads LoRA files: safetensors, or PyTorch's format, parsed as data."""

import dataclasses
import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from absl import logging

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json
from bksdm_jax.base.finite import count_non_finite
from bksdm_jax.formats.lora_names import (
    ALPHA,
    DORA_SCALE,
    DOWN,
    MAGNITUDE,
    MIDDLE,
    PEFT_PREFIX,
    UP,
    LoraKey,
    foreign,
    understood,
)
from bksdm_jax.formats.low_rank import LowRank
from bksdm_jax.formats.peft_settings import PeftSettings, peft_settings, settings_in_metadata
from bksdm_jax.formats.safetensors_file import safetensors_header
from bksdm_jax.formats.stored import EIGHT_BITS, FLOATS, StoredTensor
from bksdm_jax.formats.torch_file import index_torch
from bksdm_jax.formats.weights import tell_non_finite

SUFFIXES = (".safetensors", ".bin", ".pt", ".pth", ".ckpt")
"""Of LoRA files."""
PEFT_STEM, ADAPTER_CONFIG = "adapter_model", "adapter_config.json"
"""PEFT's file, without suffix, and its settings beside it."""
_AGAIN = "download or save it again"


@dataclasses.dataclass(frozen=True)
class LoraFile:
    """What is in a LoRA file.

    Attributes:
        path: the file.
        layers: network -> module, by Diffusers' name -> its adapter.
        keys: network -> module -> the names of its tensors in the file.
        strangers: names of tensors that aren't of an adapter, or of none that is known.
        metadata: of the file.
    """

    path: Path
    layers: Mapping[str, Mapping[str, LowRank]]
    keys: Mapping[str, Mapping[str, tuple[str, ...]]]
    strangers: tuple[str, ...]
    metadata: Mapping[str, str]


def settings_beside(path: Path) -> Path | None:
    """PEFT's settings of a file that PEFT wrote, if they are there."""
    settings = path.with_name(ADAPTER_CONFIG)
    return settings if path.stem == PEFT_STEM and settings.is_file() else None


def read_lora_file(path: Path, original: Mapping[str, str], allow_non_finite: bool = False) -> LoraFile:
    """Reads a LoRA in any of the layouts of `lora_names`; PEFT's settings are looked for beside the file.

    Args:
        path: the file.
        original: as `lora_names.original_prefixes` has it, of the model that the LoRA is for.
        allow_non_finite: as in `ModelSource`.

    Raises:
        InputError: the file can't be read, is of another kind of adapter or for another kind of model, holds half a
            pair, ranks that differ, or numbers that aren't finite.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise InputError(f"{path}: a file of unknown format; expected a LoRA in {', '.join(SUFFIXES)}")
    is_torch = path.suffix.lower() != ".safetensors"
    stored, metadata = (index_torch(path), {}) if is_torch else safetensors_header(path)
    settings = settings_in_metadata(metadata, str(path))
    beside = settings_beside(path)
    own = peft_settings(read_json(beside), str(beside)) if beside else None
    if own is None and not settings and any(key.startswith(PEFT_PREFIX) for key in stored):
        logging.warning("%s: %s isn't beside it, so its alpha is taken to be its rank", path, ADAPTER_CONFIG)
    found: dict[LoraKey, tuple[str, StoredTensor]] = {}
    strangers = []
    for key, tensor in stored.items():
        if other := foreign(key):
            raise InputError(f"{path}: {key[:160]!r}: {other[0]}; {other[1]}")
        meant = understood(key, original)
        if meant is None:
            strangers.append(key)
        elif meant in found:
            raise InputError(f"{path}: {key[:160]!r} means the same as {found[meant][0][:160]!r}; keep one of them")
        else:
            found[meant] = key, tensor
    parts: dict[tuple[str, str], dict[str, tuple[str, StoredTensor]]] = defaultdict(dict)
    for meant, entry in found.items():
        parts[meant.network, meant.module][meant.part] = entry
    layers, keys = defaultdict(dict), defaultdict(dict)
    for (network, module), own_parts in parts.items():
        scales = settings.get(network, own) or PeftSettings()
        layers[network][module] = _layer(path, module, own_parts, scales, allow_non_finite)
        keys[network][module] = tuple(key for key, _ in own_parts.values())
    return LoraFile(path, dict(layers), dict(keys), tuple(strangers), metadata)


def _layer(
    path: Path, module: str, parts: Mapping[str, tuple[str, StoredTensor]], settings: PeftSettings, allow: bool
) -> LowRank:
    """The adapter of a module from its tensors."""
    if DOWN not in parts or UP not in parts:
        key = next((parts[part] for part in (DOWN, UP) if part in parts), next(iter(parts.values())))[0]
        missing = " and ".join(part for part in (DOWN, UP) if part not in parts)
        raise InputError(f"{path}: {key[:160]!r} is there, but not its module's {missing} matrix; {_AGAIN}")
    arrays = {part: _read(path, key, tensor, allow) for part, (key, tensor) in parts.items()}
    down, up = arrays[DOWN], arrays[UP]
    _require_pair(path, parts, down, up)
    rank = down.shape[0]
    if MIDDLE in parts:
        down = _folded(path, parts[MIDDLE][0], arrays[MIDDLE], down)
    scale = settings.scale(module, rank)
    if ALPHA in parts:
        if arrays[ALPHA].size != 1:
            raise InputError(f"{path}: {parts[ALPHA][0][:160]!r} has shape {arrays[ALPHA].shape}; expected one number")
        scale = float(arrays[ALPHA].reshape(())) / rank
    layer = LowRank(down, up.reshape(up.shape[:2]), scale)
    for part in (MAGNITUDE, DORA_SCALE):
        if part in parts:
            magnitude = _magnitude(path, *parts[part], arrays[part], layer.shape, part)
            layer = dataclasses.replace(layer, magnitude=magnitude)
    return layer


def _read(path: Path, key: str, tensor: StoredTensor, allow: bool) -> np.ndarray:
    """A tensor in float32."""
    if tensor.dtype not in (FLOATS | EIGHT_BITS).values() and tensor.shape != ():  # alpha may be a whole number
        raise InputError(f"{path}: {key[:160]!r} holds {tensor.dtype}; expected one of {', '.join(FLOATS)}")
    with np.errstate(over="ignore"):
        array = np.array(tensor.read(), np.float32)
    if count := count_non_finite(array):
        tell_non_finite(str(path), {key[:160]: (tensor, count)}, allow)
    return array


def _require_pair(path: Path, parts: Mapping[str, tuple[str, StoredTensor]], down: np.ndarray, up: np.ndarray) -> None:
    """Raises `InputError` unless a product of the two matrices exists."""
    for part, array in ((DOWN, down), (UP, up)):
        fits = array.ndim in (2, 4) and (part == DOWN or math.prod(array.shape[2:]) == 1) and array.size > 0
        if not fits:
            wanted = "[rank, in] or [rank, in, h, w]" if part == DOWN else "[out, rank] or [out, rank, 1, 1]"
            raise InputError(f"{path}: {parts[part][0][:160]!r} has shape {array.shape}; expected {wanted}; {_AGAIN}")
    if down.shape[0] != up.shape[1]:
        raise InputError(
            f"{path}: {parts[DOWN][0][:160]!r} has rank {down.shape[0]}, its module's up matrix {up.shape[1]}; "
            f"they must be equal; {_AGAIN}"
        )


def _folded(path: Path, key: str, middle: np.ndarray, down: np.ndarray) -> np.ndarray:
    """The product [r, in, h, w] of a Tucker decomposition's core [r, r, h, w] and `down` [r, in, 1, 1]."""
    rank = down.shape[0]
    if middle.ndim != 4 or middle.shape[:2] != (rank, rank) or math.prod(down.shape[2:]) != 1:
        raise InputError(
            f"{path}: {key[:160]!r} has shape {middle.shape} beside a down matrix {down.shape}; expected "
            f"({rank}, {rank}, h, w) and ({rank}, in, 1, 1); {_AGAIN}"
        )
    return np.einsum("abhw,bi->aihw", middle, down.reshape(down.shape[:2]))


def _magnitude(
    path: Path, key: str, tensor: StoredTensor, array: np.ndarray, shape: Sequence[int], part: str
) -> np.ndarray:
    """DoRA's magnitudes, [out, 1, ...] or [1, in, ...].

    PEFT has one of each output, LyCORIS of each input unless the first dimension is the outputs'.
    """
    out, inputs = shape[:2]
    ones = (1,) * (len(shape) - 2)
    if array.size == out and (part == MAGNITUDE or tensor.shape[:1] == (out,)):
        return array.reshape(out, 1, *ones)
    if array.size == inputs and part == DORA_SCALE and tensor.shape[:2] == (1, inputs):
        return array.reshape(1, inputs, *ones)
    raise InputError(
        f"{path}: {key[:160]!r} has shape {tensor.shape}; expected magnitudes of {out} outputs or {inputs} inputs; "
        f"{_AGAIN}"
    )
