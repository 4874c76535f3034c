"""CLIP configs to and from the `config.json` of Transformers."""

from collections.abc import Mapping
from typing import Any

from bksdm_jax.base.errors import InputError, finite_number, known_name, whole_number
from bksdm_jax.models.clip import ACTIVATIONS, CLIPTextConfig
from bksdm_jax.models.clip_pair import CLIPConfig, CLIPVisionConfig


def clip_text_from_transformers(json: Mapping[str, Any], source: str = "config.json") -> CLIPTextConfig:
    """Reads `config.json` of Transformers' `CLIPTextModel`.

    Raises:
        InputError: a missing key or an unsupported activation.
    """
    keys = {
        "vocab_size": "vocab_size",
        "width": "hidden_size",
        "mlp_width": "intermediate_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
        "max_length": "max_position_embeddings",
    }
    numbers = {field: whole_number(source, key, json.get(key)) for field, key in keys.items()}
    activation = known_name(source, "hidden_act", json.get("hidden_act", "quick_gelu"), ACTIVATIONS)
    config = CLIPTextConfig(
        **numbers,
        activation=activation,
        epsilon=finite_number(source, "layer_norm_eps", json.get("layer_norm_eps", 1e-5), 0),
    )
    if config.width % config.heads:
        raise InputError(f"{source}: hidden_size {config.width} isn't divisible by num_attention_heads {config.heads}")
    return config


def clip_text_to_transformers(config: CLIPTextConfig) -> dict[str, Any]:
    """The `config.json` of the same network as Transformers' `CLIPTextModel`.

    The last two token ids are the start and end of text, as in CLIP's tokenizer.
    """
    return {
        "architectures": ["CLIPTextModel"],
        "model_type": "clip_text_model",
        "bos_token_id": config.vocab_size - 2,
        "eos_token_id": config.vocab_size - 1,
        "pad_token_id": config.vocab_size - 1,
        "hidden_act": config.activation,
        "hidden_size": config.width,
        "intermediate_size": config.mlp_width,
        "layer_norm_eps": config.epsilon,
        "max_position_embeddings": config.max_length,
        "num_attention_heads": config.heads,
        "num_hidden_layers": config.layers,
        "vocab_size": config.vocab_size,
    }


def clip_from_transformers(json: Mapping[str, Any], source: str = "config.json") -> CLIPConfig:
    """Reads `config.json` of Transformers' `CLIPModel`.

    Raises:
        InputError: a missing key or an unsupported activation.
    """
    for part in ("text_config", "vision_config"):
        if not isinstance(json.get(part), Mapping):
            raise InputError(f"{source}: {part} is {json.get(part)!r}; expected an object")
    vision = json["vision_config"]
    keys = {
        "image_size": "image_size",
        "patch_size": "patch_size",
        "width": "hidden_size",
        "mlp_width": "intermediate_size",
        "layers": "num_hidden_layers",
        "heads": "num_attention_heads",
    }
    numbers = {field: whole_number(source, f"vision_config.{key}", vision.get(key)) for field, key in keys.items()}
    if numbers["width"] % numbers["heads"] or numbers["image_size"] % numbers["patch_size"]:
        raise InputError(
            f"{source}: vision_config: hidden_size must be a multiple of num_attention_heads, "
            "and image_size of patch_size"
        )
    return CLIPConfig(
        text=clip_text_from_transformers(json["text_config"], f"{source}: text_config"),
        vision=CLIPVisionConfig(
            **numbers,
            activation=known_name(source, "hidden_act", vision.get("hidden_act", "quick_gelu"), ACTIVATIONS),
            epsilon=finite_number(source, "layer_norm_eps", vision.get("layer_norm_eps", 1e-5), 0),
        ),
        projection=whole_number(source, "projection_dim", json.get("projection_dim", 512)),
    )


def clip_to_transformers(config: CLIPConfig) -> dict[str, Any]:
    """The `config.json` of the same network as Transformers' `CLIPModel`."""
    vision = config.vision
    return {
        "architectures": ["CLIPModel"],
        "model_type": "clip",
        "projection_dim": config.projection,
        "text_config": clip_text_to_transformers(config.text) | {"projection_dim": config.projection},
        "vision_config": {
            "model_type": "clip_vision_model",
            "hidden_act": vision.activation,
            "hidden_size": vision.width,
            "image_size": vision.image_size,
            "intermediate_size": vision.mlp_width,
            "layer_norm_eps": vision.epsilon,
            "num_attention_heads": vision.heads,
            "num_hidden_layers": vision.layers,
            "patch_size": vision.patch_size,
            "projection_dim": config.projection,
        },
    }
