"""The architectures and prediction types of Stable Diffusion 1.x and 2.x."""

from typing import Any

from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.models.clip import CLIPTextConfig
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

# SD 2.x omits OpenCLIP's last layer.
TEXT_ENCODERS = {
    "v1": CLIPTextConfig(),
    "v2": CLIPTextConfig(width=1024, mlp_width=4096, layers=23, heads=16, activation="gelu"),
}


def stable_diffusion(generation: str) -> Architectures:
    """Stable Diffusion itself; `generation` is a key of `TEACHERS`."""
    unet, text = unet_from_diffusers(TEACHERS[generation]), TEXT_ENCODERS[generation]
    return Architectures({"unet": unet, "vae": VAEConfig(), "text_encoder": text}, ScheduleConfig())
