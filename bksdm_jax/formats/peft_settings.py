"""Settings of PEFT's adapters, which say the scale of each: `adapter_config.json`, or the metadata of Diffusers' files.

Rank and DoRA are read off the tensors.
"""

import dataclasses
import json
import math
import re
from collections.abc import Mapping
from typing import Any

from bksdm_jax.base.errors import InputError, finite_number, in_short, shown, true_or_false
from bksdm_jax.formats.lora_names import TEXT, UNET

METADATA = "lora_adapter_metadata"
"""Diffusers' key of safetensors metadata: JSON, in which `unet.lora_alpha` is the U-Net's `lora_alpha`."""
_MOST, _LARGEST = 2**24, 1e9  # letters of JSON, alpha
_CHANGED = ("pissa", "olora", "corda")  # initialisations that change the base weights
_NAME = re.compile(r"\^?[\w.-]+\$?")


@dataclasses.dataclass(frozen=True)
class PeftSettings:
    """Alphas of a network's adapters.

    Attributes:
        alpha: of modules without one of their own; None: their rank.
        alphas: end of a module's name -> its alpha; with a leading `^`, the whole name.
        rank_stabilised: the scale is alpha over the rank's square root.
    """

    alpha: float | None = None
    alphas: Mapping[str, float] = dataclasses.field(default_factory=dict)
    rank_stabilised: bool = False

    def scale(self, module: str, rank: int) -> float:
        """The scale of the adapter of a module."""
        own = (alpha for name, alpha in self.alphas.items() if _matches(name, module))
        alpha = next(own, self.alpha)
        return (rank if alpha is None else alpha) / (math.sqrt(rank) if self.rank_stabilised else rank)


def peft_settings(settings: Mapping[str, Any], source: str) -> PeftSettings:
    """Reads settings as of `adapter_config.json`; raises `InputError`, with `source`, for values that can't be."""
    kind = settings.get("peft_type", "LORA")
    if kind != "LORA":
        raise InputError(f"{source}: peft_type is {shown(kind)}; expected 'LORA', an adapter of low rank")
    init = settings.get("init_lora_weights")
    if isinstance(init, str) and init.lower().startswith(_CHANGED):
        raise InputError(
            f"{source}: init_lora_weights is {shown(init)}, whose training also changes the model's own weights; "
            "convert it to a LoRA with PEFT first"
        )
    alpha = settings.get("lora_alpha")
    patterns = settings.get("alpha_pattern") or {}
    if not isinstance(patterns, dict):
        raise InputError(f"{source}: alpha_pattern is {shown(patterns)}; expected alphas by name")
    for name in patterns:
        if not _NAME.fullmatch(name):
            raise InputError(f"{source}: alpha_pattern has {shown(name)}; expected names of modules, or their ends")
    return PeftSettings(
        None if alpha is None else _alpha(source, "lora_alpha", alpha),
        {name: _alpha(source, f"alpha_pattern {name[:80]}", value) for name, value in patterns.items()},
        true_or_false(source, "use_rslora", settings.get("use_rslora") or False),
    )


def settings_in_metadata(metadata: Mapping[str, str], source: str) -> dict[str, PeftSettings]:
    """Network -> settings, as Diffusers writes them into a file; raises `InputError` as `peft_settings`."""
    text = metadata.get(METADATA, "")
    if not text:
        return {}
    try:
        table = json.loads(text[:_MOST])
    except (ValueError, RecursionError) as error:
        raise InputError(f"{source}: its metadata {METADATA} isn't JSON ({in_short(error)}); save it again") from error
    if not isinstance(table, dict):
        raise InputError(f"{source}: its metadata {METADATA} is {shown(table)}; expected settings by name")
    found = {}
    for network in (UNET, TEXT):
        own = {key.removeprefix(f"{network}."): value for key, value in table.items() if key.startswith(f"{network}.")}
        if own:
            found[network] = peft_settings(own, f"{source}: {METADATA} of {network}")
    return found


def _alpha(source: str, key: str, value: object) -> float:
    return finite_number(source, key, value, -_LARGEST, _LARGEST)


def _matches(name: str, module: str) -> bool:
    end = name.removesuffix("$")
    return module == end[1:] if end.startswith("^") else f".{module}".endswith(f".{end}")
