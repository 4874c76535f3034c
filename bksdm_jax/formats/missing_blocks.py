"""`config.json` of U-Nets that Diffusers can't express since single blocks are missing.

It is the `config.json` of the U-Net with all blocks, and the names of the missing ones: interpolations stand for the
ResNets, nothing for the transformers. The names of its class and of its mid block's type are our own, so that Diffusers
refuses it.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bksdm_jax.base.errors import InputError, listed, shown
from bksdm_jax.formats.limits import MOST_BLOCKS
from bksdm_jax.formats.unet_json import unet_from_diffusers, unet_to_diffusers
from bksdm_jax.models.unet_table import Stage, UNetConfig, replaceable

LIBRARY, CLASS = "bksdm_jax", "UNetWithMissingBlocks"
"""Its entry in `model_index.json`."""
KEY = "missing_blocks"
"""The key of `config.json` that only such U-Nets have."""
_MID, _GAPS = "mid_block_type", ", blocks are missing"


def unet_from_json(json: Mapping[str, Any], source: str = "config.json") -> UNetConfig:
    """Reads a config of Diffusers' or of ours; raises `InputError`, with `source`, as `unet_from_diffusers`."""
    missing, mid = json.get(KEY, []), json.get(_MID)
    if missing and isinstance(mid, str) and mid.endswith(_GAPS):
        mid = mid.removesuffix(_GAPS)
        json = dict(json) | {_MID: None if mid == "None" else mid}
    whole = unet_from_diffusers(json, source)
    known = replaceable(whole)
    if not isinstance(missing, (list, tuple)) or len(missing) > MOST_BLOCKS:
        raise InputError(f"{source}: {KEY} is {shown(missing)}; expected a list of at most {MOST_BLOCKS} blocks")
    for name in missing:
        if name not in known:
            raise InputError(f"{source}: {KEY} has {shown(name)}; the U-Net's blocks are {listed(known, str(name))}")
    return _without(whole, set(missing))


def unet_to_json(config: UNetConfig) -> dict[str, Any]:
    """The `config.json` as Diffusers', or as ours where blocks are missing; raises as `unet_to_diffusers`."""
    if not has_missing_blocks(config):
        return unet_to_diffusers(config)
    whole = _completed(config)
    missing = [
        f"{name}.{kind}.{j}"
        for name, stage in config.stages().items()
        for j, (pair, other) in enumerate(zip(stage.pairs, whole.stages()[name].pairs, strict=True))
        for kind, is_missing in (("resnets", "I" in pair), ("attentions", "A" in other and "A" not in pair))
        if is_missing
    ]
    json = unet_to_diffusers(whole)
    return json | {"_class_name": CLASS, _MID: f"{json[_MID]}{_GAPS}", KEY: missing}


def has_missing_blocks(config: UNetConfig) -> bool:
    """Whether only our own `config.json` can express this U-Net."""
    return _completed(config) != config


def require_all_blocks(config: UNetConfig, file_format: str) -> None:
    """Raises `InputError`, with the format, if blocks are missing."""
    if has_missing_blocks(config):
        raise InputError(
            f"format: {file_format} can't hold this student, in which interpolations stand for ResNets, or some "
            "transformers of a stage are missing: no other program has such a U-Net; use format safetensors, a folder "
            "that bksdm_jax reads"
        )


def _completed(config: UNetConfig) -> UNetConfig:
    """With a ResNet for every interpolation, and transformers in all pairs of a stage that has one."""

    def stage(stage: Stage, depth: int, pairs: range) -> Stage:
        whole = [
            pair.replace("I", "R") + "A" * (depth if "A" not in pair and j in pairs else 0)
            for j, pair in enumerate(stage.pairs)
        ]
        return dataclasses.replace(stage, pairs=tuple(whole))

    def side(stages: tuple[Stage, ...]) -> tuple[Stage, ...]:
        return tuple(stage(one, max(one.depths, default=0), range(len(one.pairs))) for one in stages)

    down = side(config.down)
    mid = config.mid
    if mid is not None and len(mid.pairs) == 2:
        mid = stage(mid, max(down[-1].depths[:1], default=0) or 1, range(1))
    elif mid is not None:
        mid = stage(mid, 0, range(0))
    return dataclasses.replace(config, down=down, mid=mid, up=side(config.up))


def _without(config: UNetConfig, missing: set[str]) -> UNetConfig:
    def stage(name: str, stage: Stage) -> Stage:
        pairs = []
        for j, pair in enumerate(stage.pairs):
            cut = pair.replace("A", "") if f"{name}.attentions.{j}" in missing else pair
            pairs.append(cut.replace("R", "I") if f"{name}.resnets.{j}" in missing else cut)
        return dataclasses.replace(stage, pairs=tuple(pairs))

    stages = {name: stage(name, one) for name, one in config.stages().items()}
    down, up = (tuple(one for name, one in stages.items() if name.startswith(side)) for side in ("down", "up"))
    return dataclasses.replace(config, down=down, mid=stages.get("mid_block"), up=up)
