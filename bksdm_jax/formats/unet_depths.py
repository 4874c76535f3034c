"""The depths of a U-Net's transformers in Diffusers' `config.json`."""

from collections.abc import Mapping, Sequence
from typing import Any

from bksdm_jax.base.errors import InputError, shown, whole_number
from bksdm_jax.formats.limits import MOST_LAYERS
from bksdm_jax.models.unet_table import UNetConfig

DOWN, UP = "transformer_layers_per_block", "reverse_transformer_layers_per_block"


def depths_from_diffusers(
    json: Mapping[str, Any], down: Sequence[int], mid: int, up: Sequence[int], source: str
) -> tuple[list[tuple[int, ...]], tuple[int, ...], list[tuple[int, ...]]]:
    """The depths of the transformers of each down stage, of the mid block, and of each up stage.

    One number in `json` applies to all stages; a list has an entry per stage: a number, or a list with one per
    transformer. Up stages default to the down stages' depths in reverse; the mid block takes the first of the last down
    stage's entry. `down`, `mid` and `up` are transformers per stage.

    Raises `InputError` for a wrong number of entries, or an invalid depth.
    """
    value, mirrored = json.get(DOWN, 1), json.get(UP)
    entries = list(value) if isinstance(value, (list, tuple)) else [value] * len(down)
    if mirrored is None:
        if any(isinstance(entry, (list, tuple)) for entry in entries):
            raise InputError(f"{source}: {DOWN} is {shown(value)}; with nested lists, {UP} must be given too")
        mirrored = entries[::-1]
    for key, found in ((DOWN, entries), (UP, mirrored)):
        if not isinstance(found, (list, tuple)) or len(found) != len(down):
            raise InputError(f"{source}: {key} is {shown(found)}; expected {len(down)} entries, one for each stage")

    def depths(key: str, entry: Any, count: int) -> tuple[int, ...]:
        if not count:
            return ()  # Diffusers doesn't look at the entry
        each = entry if isinstance(entry, (list, tuple)) else [entry] * count
        if len(each) != count:
            raise InputError(f"{source}: {key} has {shown(entry)} for a stage with {count} transformers")
        return tuple(whole_number(source, key, depth, 1, MOST_LAYERS) for depth in each)

    last = entries[-1][:1] if isinstance(entries[-1], (list, tuple)) else entries[-1]
    return (
        [depths(DOWN, *pair) for pair in zip(entries, down, strict=True)],
        depths(DOWN, last, mid),
        [depths(UP, *pair) for pair in zip(mirrored, up, strict=True)],
    )


def depths_to_diffusers(config: UNetConfig) -> dict[str, Any]:
    """The keys for the depths of the transformers; empty if all have one layer.

    If the last down stage has no transformer, its entry is the mid block's.
    """
    mid = sum(config.mid.depths) if config.mid else 0
    unused = [1] * (len(config.down) - 1) + [mid or 1]
    down = [shortest(stage.depths) or other for stage, other in zip(config.down, unused, strict=True)]
    up = [shortest(stage.depths) or other for stage, other in zip(config.up, reversed(down), strict=True)]
    if all(entry == 1 for entry in (*down, *up)):
        return {}
    mirrored = up == down[::-1] and all(isinstance(entry, int) for entry in down)
    return {DOWN: down} if mirrored else {DOWN: down, UP: up}


def shortest(values: Sequence[int]) -> int | list[int]:
    """One number if all values are equal, else the list."""
    return values[0] if len(set(values)) == 1 else list(values)
