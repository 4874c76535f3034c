"""Locates a network's weights in a folder: format, variant, shards."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json

SUFFIXES = (".safetensors", ".msgpack", ".bin")
"""The formats of weights, in order of preference."""
DIFFUSERS_STEMS = {
    ".safetensors": "diffusion_pytorch_model",
    ".msgpack": "diffusion_flax_model",
    ".bin": "diffusion_pytorch_model",
}
TRANSFORMERS_STEMS = {".safetensors": "model", ".msgpack": "flax_model", ".bin": "pytorch_model"}
"""Suffix -> file name without it, in the two libraries."""


def choose_files(names: Collection[str], stems: Mapping[str, str], variant: str) -> tuple[str, ...]:
    """The files that hold a network's weights in the first available format: one, or an index and its shards, or none.

    Args:
        names: all file names of the network's folder.
        stems: suffix -> file name without it, for the formats to look for.
        variant: `fp16`, `non_ema`, ...; empty: none.
    """
    dotted = f".{variant}" if variant else ""
    for suffix in filter(stems.__contains__, SUFFIXES):
        single, index = f"{stems[suffix]}{dotted}{suffix}", f"{stems[suffix]}{suffix}.index{dotted}.json"
        if single in names:
            return (single,)
        if index in names:
            shard = re.compile(rf"{re.escape(stems[suffix] + dotted)}-\d+-of-\d+{re.escape(suffix)}")
            return (index, *sorted(name for name in names if shard.fullmatch(name)))
    return ()


def variants_in(folder: Path, stems: Mapping[str, str]) -> list[str]:
    """The variants of a network's weights in `folder`, such as `fp16`."""
    names = sorted(path.name for path in folder.iterdir())
    patterns = [rf"{re.escape(stem)}\.([\w-]+?)(-\d+-of-\d+)?{re.escape(suffix)}" for suffix, stem in stems.items()]
    matches = (re.fullmatch(pattern, name) for pattern in patterns for name in names)
    return list(dict.fromkeys(match[1] for match in matches if match))


def weight_files(folder: Path, stems: Mapping[str, str], variant: str) -> tuple[Path, ...]:
    """The files of `folder` that hold a network's weights (of shards, those that the index lists); may be empty.

    Raises `InputError` if an index is damaged, or a shard is missing.
    """
    names = {path.name for path in folder.iterdir()}
    chosen = choose_files(names, stems, variant)
    if not chosen or not chosen[0].endswith(".json"):
        return tuple(folder / name for name in chosen)
    index = folder / chosen[0]
    table = read_json(index).get("weight_map")
    if not isinstance(table, dict) or not all(isinstance(name, str) for name in table.values()):
        raise InputError(f"{index}: no weight_map from names to files; download it again")
    shards = sorted(set(table.values()))
    for shard in shards:
        if shard not in chosen[1:]:  # this also excludes paths outside the folder
            raise InputError(f"{index}: lists {shard[:80]!r}, which is missing; download it again")
    return tuple(folder / shard for shard in shards)
