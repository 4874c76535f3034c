"""DINO's and DINOv2's configs from the `config.json` of Transformers."""

from collections.abc import Mapping
from typing import Any

from bksdm_jax.base.errors import InputError, finite_number, known_name, shown, true_or_false, whole_number
from bksdm_jax.formats.limits import MOST_CHANNELS, MOST_LAYERS, MOST_PIXELS, MOST_POSITIONS
from bksdm_jax.models.vit import ViTConfig

_ACTIVATIONS = ("gelu",)
_DEFAULTS = {"vit": (16, 1e-12), "dinov2": (14, 1e-6), "dinov2_with_registers": (16, 1e-6)}
"""Model type -> Transformers' default patch size and epsilon of norms."""


def vit_from_transformers(json: Mapping[str, Any], source: str = "config.json") -> ViTConfig:
    """Reads `config.json` of `ViTModel`, `Dinov2Model` or `Dinov2WithRegistersModel`.

    Missing keys take Transformers' defaults. Raises `InputError` for unsupported values.
    """
    kind = known_name(source, "model_type", json.get("model_type"), _DEFAULTS)
    usual_patch, usual_epsilon = _DEFAULTS[kind]

    def count(key: str, default: int, most: int = MOST_CHANNELS, least: int = 1) -> int:
        return whole_number(source, key, json.get(key, default), least, most)

    for key, needed in (("qkv_bias", True), ("use_swiglu_ffn", False)):
        if true_or_false(source, key, json.get(key, needed)) is not needed:
            raise InputError(f"{source}: {key} is {shown(json[key])}, which isn't supported; expected {needed}")
    count("num_channels", 3, most=3, least=3)
    width, heads = count("hidden_size", 768), count("num_attention_heads", 12)
    image, patch = count("image_size", 224, MOST_PIXELS), count("patch_size", usual_patch)
    if width % heads:
        raise InputError(f"{source}: hidden_size {width} isn't divisible by num_attention_heads {heads}")
    if image < patch:
        raise InputError(f"{source}: image_size {image} is less than patch_size {patch}")
    wide = count("intermediate_size", 3072) if kind == "vit" else width * count("mlp_ratio", 4, MOST_CHANNELS // width)
    registers = count("num_register_tokens", 4, MOST_POSITIONS, 0) if kind == "dinov2_with_registers" else 0
    return ViTConfig(
        image_size=image,
        patch_size=patch,
        width=width,
        mlp_width=wide,
        layers=count("num_hidden_layers", 12, MOST_LAYERS),
        heads=heads,
        activation=known_name(source, "hidden_act", json.get("hidden_act", "gelu"), _ACTIVATIONS),
        epsilon=finite_number(source, "layer_norm_eps", json.get("layer_norm_eps", usual_epsilon), 0, 1),
        registers=registers,
        layer_scale=kind != "vit",
        antialias=kind == "dinov2_with_registers",
    )
