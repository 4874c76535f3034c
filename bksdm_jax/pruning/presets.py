"""The students of the BK-SDM paper (arXiv 2305.15798): removed blocks, exact sizes, published scores."""

import dataclasses
from collections.abc import Collection
from typing import NamedTuple


def _second_pairs(*stages: str) -> tuple[str, ...]:
    return tuple(f"{stage}.{kind}.1" for stage in stages for kind in ("resnets", "attentions"))


_BASE = (
    *_second_pairs("down_blocks.0", "down_blocks.1", "down_blocks.2"),
    "down_blocks.3.resnets.1",
    "up_blocks.0.resnets.1",
    *_second_pairs("up_blocks.1", "up_blocks.2", "up_blocks.3"),
)


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named student.

    Attributes:
        removed: the removed blocks of the teacher.
        parameters: generation of the SD teacher (`v1`, `v2`) -> parameters of the U-Net.
        macs: the same for multiply-adds of one U-Net call at 64x64 latents by THOP's rules, where published.
    """

    removed: tuple[str, ...]
    parameters: dict[str, int]
    macs: dict[str, int]


PRESETS = {
    "sd": Preset((), {"v1": 859_520_964, "v2": 865_910_724}, {"v1": 338_749_194_240, "v2": 339_241_205_760}),
    "bk_base": Preset(_BASE, {"v1": 579_384_964, "v2": 583_480_964}, {"v1": 223_755_632_640, "v2": 224_071_024_640}),
    "bk_small": Preset(
        (*_BASE, "mid_block"), {"v1": 482_346_884, "v2": 485_787_524}, {"v1": 217_727_959_040, "v2": 217_992_888_320}
    ),
    "bk_tiny": Preset(
        (*_BASE, "mid_block", "down_blocks.3", "up_blocks.0"),
        {"v1": 323_384_964, "v2": 326_825_604},
        {"v1": 205_035_274_240, "v2": 205_300_203_520},
    ),
    "no_mid": Preset(("mid_block",), {"v1": 762_482_884, "v2": 768_217_284}, {}),
}


def preset_of(removed: Collection[str]) -> str:
    """The preset that removes these blocks; empty if none does."""
    return next((name for name, preset in PRESETS.items() if set(preset.removed) == set(removed)), "")


class Scores(NamedTuple):
    """The paper's scores on COCO-30K; `clip_score` is None where not reported."""

    fid: float
    inception_score: float
    clip_score: float | None


UPDATES = 50_000
"""Training steps of every published result."""

UNTRAINED = {
    "v1,sd": Scores(13.05, 36.76, 0.2958),
    "v1,no_mid": Scores(15.60, 32.33, None),
    "v2_base,sd": Scores(13.93, 35.93, 0.3075),
}
"""Generation and preset -> scores of Stable Diffusion itself, and after removing blocks without training."""

PUBLISHED = {
    "v1,bk_base": Scores(15.76, 33.79, 0.2878),
    "v1,bk_small": Scores(16.98, 31.68, 0.2677),
    "v1,bk_tiny": Scores(17.12, 30.09, 0.2653),
    "v1,bk_base,pairs_2.3m": Scores(14.81, 34.17, 0.2883),
    "v1,bk_small,pairs_2.3m": Scores(17.05, 33.10, 0.2734),
    "v1,bk_tiny,pairs_2.3m": Scores(17.53, 31.32, 0.2690),
    "v1,bk_base,batch_64": Scores(14.61, 31.44, 0.2826),
    "v1,bk_small,batch_64": Scores(16.87, 29.51, 0.2644),
    "v1,bk_tiny,batch_64": Scores(17.28, 28.33, 0.2607),
    "v1,bk_base,batch_128": Scores(15.02, 32.40, 0.2841),
    "v1,bk_small,batch_128": Scores(16.83, 30.40, 0.2668),
    "v1,bk_base,no_kd": Scores(23.57, 23.02, 0.2408),
    "v2_base,bk_base": Scores(15.85, 31.70, 0.2868),
    "v2_base,bk_small": Scores(16.61, 31.73, 0.2901),
    "v2_base,bk_tiny": Scores(15.68, 31.64, 0.2897),
    "v2_base,no_mid": Scores(14.84, 37.29, 0.3093),
    "v2_base,bk_base,no_kd": Scores(16.76, 25.88, 0.2661),
    "v2_base,bk_small,no_kd": Scores(16.71, 25.77, 0.2655),
    "v2_base,bk_tiny,no_kd": Scores(16.87, 26.06, 0.2678),
    "v2_base,bk_small,no_feature": Scores(14.27, 29.47, 0.2777),
    "v2_base,bk_small,random_init": Scores(24.47, 22.37, 0.2323),
    "v2_base,bk_small,random_init,no_kd": Scores(41.75, 15.42, 0.1733),
    "v2_base,bk_small,random_init,no_feature": Scores(29.01, 18.29, 0.1967),
    "v2_base,bk_small,lr_1e-5": Scores(15.24, 29.77, 0.2844),
    "v2_base,bk_small,lr_2.5e-5": Scores(15.69, 31.64, 0.2906),
    "v2_base,bk_small,lr_1e-4": Scores(17.43, 30.58, 0.2871),
    "v2_base,bk_small,lr_2.5e-4": Scores(18.93, 28.90, 0.2775),
}
"""Variants of `configs/distill.py` -> scores after `UPDATES`; batch size 256 (v1) or 128 (v2_base) unless named."""


class SubjectScores(NamedTuple):
    """The paper's scores of personalised generation, fine-tuned on 30 subjects one by one."""

    dino: float
    clip_i: float
    clip_t: float


SUBJECTS = {
    "v1,sd": SubjectScores(0.728, 0.725, 0.263),
    "v1,bk_base": SubjectScores(0.723, 0.717, 0.260),
    "v1,bk_small": SubjectScores(0.720, 0.705, 0.259),
    "v1,bk_tiny": SubjectScores(0.715, 0.693, 0.261),
}
"""Generation and preset -> scores after DreamBooth's fine-tuning of all weights."""


class Chosen(NamedTuple):
    """A v1 student whose blocks a score chose: its size as the paper rounds it, and scores of one training.

    `macs` and `inception_score` are None where not reported.
    """

    criterion: str
    trained: str
    parameters: int
    macs: int | None
    fid: float
    inception_score: float | None
    clip_score: float


CHOSEN = (
    Chosen("Small's own list", "without KD", 482_300_000, 217_700_000_000, 22.97, None, 0.2287),
    Chosen("Taylor", "without KD", 493_400_000, 305_400_000_000, 18.85, None, 0.2429),
    Chosen("Taylor", "with KD", 493_400_000, 305_400_000_000, 16.73, None, 0.2749),
    Chosen("CLIP score", "without KD", 496_800_000, 204_800_000_000, 32.93, None, 0.1936),
    Chosen("CLIP score, 15 blocks", "with KD", 606_000_000, None, 14.06, 30.91, 0.2787),
    Chosen("CLIP score, 17 blocks", "with KD", 540_000_000, None, 17.65, 27.06, 0.2553),
    Chosen("CLIP score, 19 blocks", "with KD", 496_800_000, 204_800_000_000, 21.86, 22.01, 0.2283),
)
"""Tables 5 and 12; Small with KD is `v1,bk_small,batch_128`. Of the magnitude criterion only FID > 150 is stated."""
