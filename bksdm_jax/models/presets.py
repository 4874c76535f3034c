"""The students of the BK-SDM paper as lists of removed blocks, with the exact sizes they leave (arXiv 2305.15798)."""

import dataclasses
from typing import Any


def _pair(stage: str, j: int) -> tuple[str, str]:
    return f"{stage}.resnets.{j}", f"{stage}.attentions.{j}"


_BASE = (
    *_pair("down_blocks.0", 1),
    *_pair("down_blocks.1", 1),
    *_pair("down_blocks.2", 1),
    "down_blocks.3.resnets.1",
    "up_blocks.0.resnets.1",
    *_pair("up_blocks.1", 1),
    *_pair("up_blocks.2", 1),
    *_pair("up_blocks.3", 1),
)


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named student.

    Attributes:
        removed: the teacher's blocks that go.
        parameters: of the U-Net, for an SD teacher of each generation (`v1`, `v2`).
        macs: multiply-adds of one evaluation at 64x64 latents by THOP's rules; what the paper doesn't state is absent.
    """

    removed: tuple[str, ...]
    parameters: dict[str, int]
    macs: dict[str, int]


PRESETS = {
    "sd": Preset(
        (),
        {"v1": 859_520_964, "v2": 865_910_724},
        {"v1": 338_749_194_240, "v2": 339_241_205_760},
    ),
    "bk_base": Preset(
        _BASE,
        {"v1": 579_384_964, "v2": 583_480_964},
        {"v1": 223_755_632_640, "v2": 224_071_024_640},
    ),
    "bk_small": Preset(
        (*_BASE, "mid_block"),
        {"v1": 482_346_884, "v2": 485_787_524},
        {"v1": 217_727_959_040, "v2": 217_992_888_320},
    ),
    "bk_tiny": Preset(
        (*_BASE, "mid_block", "down_blocks.3", "up_blocks.0"),
        {"v1": 323_384_964, "v2": 326_825_604},
        {"v1": 205_035_274_240, "v2": 205_300_203_520},
    ),
    "no_mid": Preset(("mid_block",), {"v1": 762_482_884, "v2": 768_217_284}, {}),
}

# The U-Nets of Stable Diffusion, as Diffusers' config.json states what differs from its defaults.
TEACHERS: dict[str, dict[str, Any]] = {
    "v1": {"cross_attention_dim": 768, "attention_head_dim": 8, "sample_size": 64},
    "v2": {
        "cross_attention_dim": 1024,
        "attention_head_dim": [5, 10, 20, 20],
        "sample_size": 64,
        "use_linear_projection": True,
    },
}

# What a run is meant for: the U-Net of `TEACHERS`, and what it predicts (empty: either).
GENERATIONS: dict[str, tuple[str, str]] = {
    "v1": ("v1", ""),
    "v2_base": ("v2", "epsilon"),
    "v2": ("v2", "v_prediction"),
}

# Their text encoders, as Transformers' config.json states them. SD 2.x leaves out OpenCLIP's last layer.
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
