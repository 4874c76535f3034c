"""Locates a network's weights in a folder: format, variant, shards."""

import re
from collections.abc import Collection, Mapping
from pathlib import Path

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json

SUFFIXES = (".safetensors", ".bin", ".msgpack")
"""The formats of weights, in order of preference: Diffusers' in PyTorch."""
DIFFUSERS_STEMS = {
    ".safetensors": "diffusion_pytorch_model",
    ".msgpack": "diffusion_flax_model",
    ".bin": "diffusion_pytorch_model",
}
TRANSFORMERS_STEMS = {".safetensors": "model", ".msgpack": "flax_model", ".bin": "pytorch_model"}
"""Suffix -> file name without it, in the two libraries."""


_NUMBER = r"-\d+-of-\d+"


def choose_files(names: Collection[str], stems: Mapping[str, str], variant: str) -> tuple[str, ...]:
    """The files that hold a network's weights in the first available format: one, or an index and its shards, or none.

    Args:
        names: all file names of the network's folder.
        stems: suffix -> file name without it, for the formats to look for.
        variant: `fp16`, `non_ema`, ...; empty: none.
    """
    for suffix in filter(stems.__contains__, SUFFIXES):
        whole, index = whole_file(stems[suffix], suffix, variant), _index(names, stems[suffix], suffix, variant)
        shards = (index, *_shards(names, stems[suffix], suffix, variant)) if index else ()
        # Of a whole file and shards, Diffusers reads the shards, but only in safetensors, and Transformers the file.
        shards_first = stems[suffix] == DIFFUSERS_STEMS[".safetensors"] and suffix == ".safetensors"
        for files in (shards, (whole,)) if shards_first else ((whole,), shards):
            if files and files[0] in names:
                return files
    return ()


def whole_file(stem: str, suffix: str, variant: str) -> str:
    """The name of the file with all of a network's weights."""
    return f"{stem}{f'.{variant}' if variant else ''}{suffix}"


def _index(names: Collection[str], stem: str, suffix: str, variant: str) -> str:
    """The name of the index of shards, or the empty string. Older versions of Diffusers put the variant before it."""
    dotted = f".{variant}" if variant else ""
    older = [f"{stem}{suffix}{dotted}.index.json"] if stem == DIFFUSERS_STEMS[suffix] else []
    return next((name for name in (f"{stem}{suffix}.index{dotted}.json", *older) if name in names), "")


def _shards(names: Collection[str], stem: str, suffix: str, variant: str) -> list[str]:
    """The names of shards. Older versions of the libraries put the variant after the number."""
    infix = re.escape(f".{variant}" if variant else "")
    pattern = re.compile(f"{re.escape(stem)}({infix}{_NUMBER}|{_NUMBER}{infix}){re.escape(suffix)}")
    return sorted(filter(pattern.fullmatch, names))


def other_weights(folder: Path, stems: Mapping[str, str]) -> str:
    """A hint at weights in `folder` that aren't looked for: those of a variant, or shards without index; or empty."""
    for suffix, stem in stems.items():
        pattern = re.compile(rf"{re.escape(stem)}({_NUMBER})?(?:\.([\w-]+?))?({_NUMBER})?{re.escape(suffix)}")
        for match in filter(None, map(pattern.fullmatch, sorted(path.name for path in folder.iterdir()))):
            if match[2]:
                return f"; there is variant {match[2]!r}: set variant to it"
            return f"; {match[0]} is there, but not {stem}{suffix}.index.json: download it too"
    return ""


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
    if not isinstance(table, dict) or not table or not all(isinstance(name, str) for name in table.values()):
        raise InputError(f"{index}: no weight_map from names to files; download it again")
    shards = sorted(set(table.values()))
    for shard in shards:
        if shard not in chosen[1:]:  # this also excludes paths outside the folder
            others = (whole_file(stem, suffix, variant) for suffix, stem in stems.items())
            whole = next((name for name in others if name in names), "")
            way_out = f", or delete the index to read {whole}" if whole else ""
            raise InputError(f"{index}: lists {shard[:80]!r}, which is missing; download it again{way_out}")
    return tuple(folder / shard for shard in shards)
