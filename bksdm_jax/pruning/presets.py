"""The students of the BK-SDM paper as lists of removed blocks, with the exact sizes they leave (arXiv 2305.15798)."""

import dataclasses
from collections.abc import Collection


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


def preset_of(removed: Collection[str]) -> str:
    """The preset that removes these blocks; empty where none does."""
    return next((name for name, preset in PRESETS.items() if set(preset.removed) == set(removed)), "")
