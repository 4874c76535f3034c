"""Names of the tensors in LoRA files: which module of which network a key means, and which part of its adapter.

Modules have Diffusers' PyTorch names without `.weight`, as `names.torch_name` gives them. Keys are those of kohya's
scripts (`lora_unet_mid_block_attentions_0_proj_in.lora_down.weight`), also with the original layout's block numbers
(`lora_unet_middle_block_1_proj_in...`), of PEFT (`unet.mid_block.attentions.0.proj_in.lora_A.weight`) and of older
versions of Diffusers (`unet.mid_block.attentions.0.transformer_blocks.0.attn1.processor.to_q_lora.down.weight`).
"""

import re
from collections.abc import Mapping
from typing import NamedTuple

from bksdm_jax.formats.original_names import UNET as ORIGINAL_UNET
from bksdm_jax.formats.original_names import unet_modules
from bksdm_jax.models.unet_table import UNetConfig

UNET, TEXT = "unet", "text_encoder"
"""The networks that adapters are of."""
DOWN, UP, MIDDLE, ALPHA, MAGNITUDE, DORA_SCALE = "down", "up", "middle", "alpha", "magnitude", "dora_scale"
"""Parts of an adapter; the last two are DoRA's magnitudes in PEFT's and kohya's shapes."""

_ENDINGS = {
    ".lora_down.weight": DOWN,
    ".lora_up.weight": UP,
    ".lora_mid.weight": MIDDLE,
    ".alpha": ALPHA,
    ".lora.alpha": ALPHA,
    "_lora.alpha": ALPHA,
    ".dora_scale": DORA_SCALE,
    ".lora_A.weight": DOWN,
    ".lora_B.weight": UP,
    ".lora_A.default.weight": DOWN,
    ".lora_B.default.weight": UP,
    ".lora_magnitude_vector": MAGNITUDE,
    ".lora_magnitude_vector.weight": MAGNITUDE,
    ".lora_magnitude_vector.default.weight": MAGNITUDE,
    ".lora_linear_layer.down.weight": DOWN,
    ".lora_linear_layer.up.weight": UP,
    ".lora.down.weight": DOWN,
    ".lora.up.weight": UP,
    "_lora.down.weight": DOWN,
    "_lora.up.weight": UP,
}
"""Ending of a key -> part."""
_KOHYA = {UNET: "lora_unet_", TEXT: "lora_te_"}
_JOINED = {"lora_unet_": UNET, "lora_te_": TEXT, "lora_te1_": TEXT}
PEFT_PREFIX = "base_model.model."
"""Of all keys that PEFT itself writes."""
_ORIGINAL, _TEXT_MODEL = "diffusion_model.", "text_model."
_TEXT_HEADS = ("text_model.", "encoder.layers.")
_OLDEST_TEXT = {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}
_WORDS = (
    *("down_blocks", "mid_block", "up_blocks", "transformer_blocks", "time_embedding", "add_embedding"),
    *("linear_1", "linear_2", "conv_in", "conv_out", "conv_shortcut", "time_emb_proj", "proj_in", "proj_out"),
    *("to_q", "to_k", "to_v", "to_out", "text_model", "self_attn", "q_proj", "k_proj", "v_proj", "out_proj"),
)
"""Parts of names that have an underscore."""
_PART = re.compile(rf"({'|'.join(_WORDS)}|[^_]+)(?:_|$)")
_FOREIGN = (
    (re.compile(r"\.hada_"), "a LoHa (LyCORIS)", "expected LoRA, LoCon or DoRA; train or extract one of these"),
    (re.compile(r"\.lokr_"), "a LoKr (LyCORIS)", "expected LoRA, LoCon or DoRA; train or extract one of these"),
    (re.compile(r"\.oft_|\.a1\.weight"), "an OFT or GLoRA", "expected LoRA, LoCon or DoRA; train or extract one"),
    (re.compile(r"^lora_te2_|^text_encoder_2\."), "a LoRA for SDXL", "expected one for Stable Diffusion 1.x or 2.x"),
    (
        re.compile(r"^lora_transformer_|^(base_model\.model\.)?transformer\.|double_blocks"),
        "a LoRA for a diffusion transformer",
        "expected one for Stable Diffusion 1.x or 2.x",
    ),
)


class LoraKey(NamedTuple):
    """What a key means: the part of the adapter of a module."""

    network: str
    module: str
    part: str


def foreign(key: str) -> tuple[str, str] | None:
    """What a key belongs to that isn't supported, and what to use instead; None: nothing of this kind."""
    return next(((what, instead) for pattern, what, instead in _FOREIGN if pattern.search(key)), None)


def original_prefixes(config: UNetConfig) -> dict[str, str]:
    """Names in the original layout, joined by underscores -> Diffusers' names; see `unet_modules`."""
    return {theirs.removeprefix(ORIGINAL_UNET).replace(".", "_"): ours for ours, theirs in unet_modules(config).items()}


def understood(key: str, original: Mapping[str, str]) -> LoraKey | None:
    """What a key means, or None if it is none of an adapter's; `original` is of `original_prefixes`.

    The module needn't exist.
    """
    ending = max((one for one in _ENDINGS if key.endswith(one)), key=len, default="")
    stem, part = key.removesuffix(ending), _ENDINGS.get(ending, "")
    if not ending or not stem:
        return None
    for prefix, network in _JOINED.items():
        if stem.startswith(prefix):
            joined = stem.removeprefix(prefix)
            name = _of_original(joined, original) or dotted(joined)
            return LoraKey(network, _with_text_model(name) if network == TEXT else name, part)
    stem = stem.removeprefix(PEFT_PREFIX)
    if stem.startswith(_ORIGINAL):
        name = _of_original(stem.removeprefix(_ORIGINAL).replace(".", "_"), original)
        return LoraKey(UNET, name, part) if name else None
    network, _, name = stem.partition(".")
    if network not in (UNET, TEXT):
        network, name = TEXT if stem.startswith(_TEXT_HEADS) else UNET, stem
    return LoraKey(network, _current(network, name), part) if name else None


def dotted(joined: str) -> str:
    """`mid_block_attentions_0_proj_in` -> `mid_block.attentions.0.proj_in`."""
    return ".".join(_PART.findall(joined))


def kohya_stem(network: str, module: str) -> str:
    """A module's name as kohya's scripts write it, without the part."""
    return f"{_KOHYA[network]}{module.replace('.', '_')}"


def diffusers_stem(network: str, module: str) -> str:
    """A module's name as Diffusers writes it; the text encoder's without `text_model.`, as Transformers has it now."""
    return f"{network}.{module.removeprefix(_TEXT_MODEL)}"


def _of_original(joined: str, original: Mapping[str, str]) -> str:
    """Diffusers' name of one in the original layout: the longest beginning in `original` applies; empty: none does."""
    parts = joined.split("_")
    for length in range(len(parts), 0, -1):
        if ours := original.get("_".join(parts[:length])):
            return ".".join([ours, dotted("_".join(parts[length:]))]).rstrip(".")
    return ""


def _current(network: str, name: str) -> str:
    """The current name of a module with the oldest ones of attention."""
    name = name.replace(".processor.", ".")
    head, _, leaf = name.rpartition(".")
    if network == TEXT:
        leaf = _OLDEST_TEXT.get(leaf, leaf) if head.endswith("self_attn") else leaf
        return _with_text_model(f"{head}.{leaf}")
    return f"{name}.0" if leaf == "to_out" else name


def _with_text_model(name: str) -> str:
    return _TEXT_MODEL + name.removeprefix(_TEXT_MODEL)
