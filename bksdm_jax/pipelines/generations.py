"""What distinguishes the generations of Stable Diffusion; nothing here imports JAX."""

from typing import Any

TEACHERS: dict[str, dict[str, Any]] = {
    "v1": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
    "v2": {
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "sample_size": 64,
        "use_linear_projection": True,
    },
}
"""Generation -> the U-Net's config.json, without Diffusers' defaults."""
GENERATIONS: dict[str, tuple[str, str]] = {"v1": ("v1", ""), "v2_base": ("v2", "epsilon"), "v2": ("v2", "v_prediction")}
"""Generation of a run -> key of `TEACHERS`, prediction type (empty: either)."""
