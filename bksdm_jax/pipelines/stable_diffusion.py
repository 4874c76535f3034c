"""The architectures and prediction types of Stable Diffusion 1.x and 2.x."""

from typing import Any

from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.formats.clip_json import clip_text_from_transformers
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.models.vae import VAEConfig
from bksdm_jax.pipelines.pipeline import Architectures

# Generation -> the U-Net's config.json, without Diffusers' defaults.
TEACHERS: dict[str, dict[str, Any]] = {
    "v1": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
    "v2": {
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "sample_size": 64,
        "use_linear_projection": True,
    },
}

# Generation of a run -> key of `TEACHERS`, prediction type (empty: either).
GENERATIONS: dict[str, tuple[str, str]] = {"v1": ("v1", ""), "v2_base": ("v2", "epsilon"), "v2": ("v2", "v_prediction")}

# Generation -> the text encoder's config.json. SD 2.x omits OpenCLIP's last layer.
TEXT_ENCODERS: dict[str, dict[str, Any]] = {
    "v1": {
        "vocab_size": 49_408,
        "hidden_size": 768,
        "intermediate_size": 3072,
        "num_hidden_layers": 12,
        "num_attention_heads": 12,
        "max_position_embeddings": 77,
        "hidden_act": "quick_gelu",
    },
    "v2": {
        "vocab_size": 49_408,
        "hidden_size": 1024,
        "intermediate_size": 4096,
        "num_hidden_layers": 23,
        "num_attention_heads": 16,
        "max_position_embeddings": 77,
        "hidden_act": "gelu",
    },
}


def stable_diffusion(generation: str) -> Architectures:
    """Stable Diffusion itself; `generation` is a key of `TEACHERS`."""
    configs = {
        "unet": unet_from_diffusers(TEACHERS[generation]),
        "vae": VAEConfig(),
        "text_encoder": clip_text_from_transformers(TEXT_ENCODERS[generation]),
    }
    return Architectures(configs, ScheduleConfig())
