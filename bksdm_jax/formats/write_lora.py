"""Writes LoRA files in the layouts of kohya's scripts and of Diffusers."""

import collections
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import atomic_file, flush
from bksdm_jax.base.finite import count_non_finite
from bksdm_jax.formats.lora_names import diffusers_stem, kohya_stem
from bksdm_jax.formats.low_rank import LowRank
from bksdm_jax.formats.peft_settings import METADATA
from bksdm_jax.formats.stored import FLOATS
from bksdm_jax.formats.weights import write_tensors

Layers = Mapping[str, Mapping[str, LowRank]]
"""Network -> module, by Diffusers' name -> its adapter."""


def write_lora(
    path: Path, layers: Layers, layout: str = "kohya", dtype: str = "float16", metadata: Mapping[str, str] | None = None
) -> None:
    """Writes a LoRA as safetensors, atomically.

    Args:
        path: the file.
        layers: the adapters.
        layout: `kohya`, which most tools read, or `diffusers`. That has no place for scales that all its readers look
            at: they are multiplied into the up matrices; the text encoder's names are those of Transformers 5.6 and
            later.
        dtype: of the matrices: `float32`, `float16` or `bfloat16`.
        metadata: more of it, besides what the layout has.

    Raises:
        InputError: the layout can't hold such DoRA magnitudes, a number isn't finite or out of the dtype's range, or
            the file can't be written.
    """
    with np.errstate(over="ignore"):  # told below
        tensors = dict(_kohya(layers) if layout == "kohya" else _diffusers(layers))
    own = _kohya_metadata(layers) if layout == "kohya" else {METADATA: json.dumps(_settings(layers), sort_keys=True)}
    for key, array in tensors.items():
        if array.ndim == 0:
            continue  # alpha
        with np.errstate(over="ignore"):
            cast = array.astype(FLOATS[dtype])
        if count_non_finite(cast):
            what = "aren't finite" if count_non_finite(array) else f"are out of range of {dtype}; use float32"
            raise InputError(f"{path}: not written, since values of {key} {what}")
        tensors[key] = np.ascontiguousarray(cast)
    with atomic_file(path) as temporary:
        write_tensors(temporary, tensors, own | dict(metadata or {}))
        flush(temporary)


def _kohya(layers: Layers) -> Iterator[tuple[str, np.ndarray]]:
    for network, modules in layers.items():
        for module, layer in modules.items():
            stem = kohya_stem(network, module)
            yield f"{stem}.lora_down.weight", layer.down
            yield f"{stem}.lora_up.weight", _up(layer, 1.0)
            yield f"{stem}.alpha", np.array(layer.scale * layer.rank, np.float32)
            if layer.magnitude is not None:
                yield f"{stem}.dora_scale", layer.magnitude


def _diffusers(layers: Layers) -> Iterator[tuple[str, np.ndarray]]:
    for network, modules in layers.items():
        if len({layer.magnitude is None for layer in modules.values()}) > 1:
            raise InputError(f"layout: diffusers can't hold a {network} of which only some modules are DoRA; use kohya")
        for module, layer in modules.items():
            stem = diffusers_stem(network, module)
            yield f"{stem}.lora_A.weight", layer.down
            yield f"{stem}.lora_B.weight", _up(layer, layer.scale)
            if layer.magnitude is not None:
                yield f"{stem}.lora_magnitude_vector", _peft_magnitude(stem, layer)


def _up(layer: LowRank, factor: float) -> np.ndarray:
    """[out, r], or [out, r, 1, 1] of a convolution."""
    return (layer.up * np.float32(factor)).reshape(layer.up.shape + (1,) * (layer.down.ndim - 2))


def _peft_magnitude(stem: str, layer: LowRank) -> np.ndarray:
    """[out], or [1, out, 1, 1] of a convolution; raises `InputError` for magnitudes of inputs."""
    magnitude = layer.magnitude
    assert magnitude is not None
    if magnitude.shape[0] != layer.shape[0]:
        raise InputError(f"layout: diffusers can't hold DoRA magnitudes of inputs, as {stem} has; use kohya")
    return magnitude.reshape(-1) if magnitude.ndim == 2 else magnitude.reshape(1, -1, 1, 1)


def _settings(layers: Layers) -> dict[str, object]:
    """PEFT's settings; Diffusers can't infer several ranks without them."""
    found: dict[str, object] = {}
    for network, modules in layers.items():
        if not modules:
            continue
        ranks = {diffusers_stem(network, name).partition(".")[2]: layer.rank for name, layer in modules.items()}
        usual = collections.Counter(ranks.values()).most_common(1)[0][0]
        others = {name: rank for name, rank in ranks.items() if rank != usual}
        found |= {
            f"{network}.r": usual,
            f"{network}.lora_alpha": usual,
            f"{network}.rank_pattern": others,
            f"{network}.alpha_pattern": others,
            f"{network}.target_modules": sorted(ranks),
            f"{network}.use_dora": any(layer.magnitude is not None for layer in modules.values()),
        }
    return found


def _kohya_metadata(layers: Layers) -> dict[str, str]:
    """Rank and alpha of most modules, by which tools list LoRAs."""
    all_layers = [layer for modules in layers.values() for layer in modules.values()]
    found = {"ss_network_module": "networks.lora"}
    if all_layers:
        (rank, alpha), _ = collections.Counter((one.rank, one.scale * one.rank) for one in all_layers).most_common(1)[0]
        found |= {"ss_network_dim": str(rank), "ss_network_alpha": f"{alpha:g}"}
    return found
