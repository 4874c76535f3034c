"""CLIP configs to and from the `config.json` of Transformers."""

from collections.abc import Mapping
from typing import Any

from bksdm_jax.base.errors import InputError, finite_number, known_name, shown, whole_number
from bksdm_jax.formats.limits import MOST_CHANNELS, MOST_LAYERS, MOST_PIXELS, MOST_POSITIONS, MOST_TOKENS
from bksdm_jax.models.clip import ACTIVATIONS, CLIPTextConfig, TowerConfig
from bksdm_jax.models.clip_pair import CLIPConfig, CLIPVisionConfig

_TOWER = {
    "width": "hidden_size",
    "mlp_width": "intermediate_size",
    "layers": "num_hidden_layers",
    "heads": "num_attention_heads",
}
_MOST = {"layers": MOST_LAYERS, "vocab_size": MOST_TOKENS, "positions": MOST_POSITIONS, "image_size": MOST_PIXELS}
_TEXT = _TOWER | {"vocab_size": "vocab_size", "positions": "max_position_embeddings"}
_TEXT_DEFAULTS = {
    "hidden_size": 512,
    "intermediate_size": 2048,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "vocab_size": 49408,
    "max_position_embeddings": 77,
}
_VISION = _TOWER | {"image_size": "image_size", "patch_size": "patch_size"}
_VISION_DEFAULTS = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "image_size": 224,
    "patch_size": 32,
}


def clip_text_from_transformers(json: Mapping[str, Any], source: str = "config.json") -> CLIPTextConfig:
    """Reads `config.json` of Transformers' `CLIPTextModel`, or the `text_config` of a `CLIPModel`'s.

    Missing keys take Transformers' defaults. Raises `InputError` for unsupported values.
    """
    if json.get("model_type") == "clip" and isinstance(json.get("text_config"), Mapping):
        json, source = json["text_config"], f"{source}: text_config"
    fields = _fields(_TEXT_DEFAULTS | dict(json), _TEXT, source)
    return CLIPTextConfig(**fields, max_length=fields["positions"])


def clip_text_to_transformers(config: CLIPTextConfig) -> dict[str, Any]:
    """The `config.json` of the same network as Transformers' `CLIPTextModel`.

    The last two token ids are the start and end of text, as in CLIP's tokenizer.
    """
    return _json(config, _TEXT) | {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "bos_token_id": config.vocab_size - 2,
        "eos_token_id": config.vocab_size - 1,
        "pad_token_id": config.vocab_size - 1,
    }


def loaded_in_float32(json: Mapping[str, Any]) -> dict[str, Any]:
    """A Transformers `config.json` that says float32.

    By default, Transformers loads weights in the dtype that it says, whereas Diffusers loads its own in float32,
    whatever their dtype.
    """

    def without_dtype(value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: without_dtype(one) for key, one in value.items() if key not in ("dtype", "torch_dtype")}

    return without_dtype(json) | {"dtype": "float32"}


def clip_from_transformers(json: Mapping[str, Any], source: str = "config.json") -> CLIPConfig:
    """Reads `config.json` of Transformers' `CLIPModel`; missing numbers take Transformers' defaults.

    Raises `InputError` for a missing tower and for unsupported values.
    """
    towers = {}
    for part, defaults in (("text_config", _TEXT_DEFAULTS), ("vision_config", _VISION_DEFAULTS)):
        if not isinstance(json.get(part), Mapping):
            raise InputError(f"{source}: {part} is {shown(json.get(part))}; expected an object, as a CLIPModel has")
        older = json.get(f"{part}_dict")  # as in Transformers, it goes before, with defaults for what it lacks
        towers[part] = defaults | dict(json[part]) | (defaults | dict(older) if isinstance(older, Mapping) else {})
    vision = CLIPVisionConfig(**_fields(towers["vision_config"], _VISION, f"{source}: vision_config"))
    if vision.image_size % vision.patch_size:
        raise InputError(
            f"{source}: vision_config: image_size {vision.image_size} isn't divisible by patch_size {vision.patch_size}"
        )
    text = clip_text_from_transformers(towers["text_config"], f"{source}: text_config")
    projection = whole_number(source, "projection_dim", json.get("projection_dim", 512), 1, MOST_CHANNELS)
    return CLIPConfig(text, vision, projection)


def clip_to_transformers(config: CLIPConfig) -> dict[str, Any]:
    """The `config.json` of the same network as Transformers' `CLIPModel`."""
    projection = {"projection_dim": config.projection}
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        **projection,
        "text_config": clip_text_to_transformers(config.text) | projection,
        "vision_config": _json(config.vision, _VISION) | {"model_type": "clip_vision_model"} | projection,
    }


def _fields(json: Mapping[str, Any], keys: Mapping[str, str], source: str) -> dict[str, Any]:
    """The fields of a tower's config; `keys` has the JSON key of each numeric field."""
    fields: dict[str, Any] = {
        field: whole_number(source, key, json.get(key), 1, _MOST.get(field, MOST_CHANNELS))
        for field, key in keys.items()
    }
    if fields["width"] % fields["heads"]:
        raise InputError(
            f"{source}: hidden_size {fields['width']} isn't divisible by num_attention_heads {fields['heads']}"
        )
    fields["activation"] = known_name(source, "hidden_act", json.get("hidden_act", "quick_gelu"), ACTIVATIONS)
    fields["epsilon"] = finite_number(source, "layer_norm_eps", json.get("layer_norm_eps", 1e-5), 0, 1)
    return fields


def _json(config: TowerConfig, keys: Mapping[str, str]) -> dict[str, Any]:
    numbers = {key: getattr(config, field) for field, key in keys.items()}
    return numbers | {"hidden_act": config.activation, "layer_norm_eps": config.epsilon}
