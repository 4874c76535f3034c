r"""Scores the blocks of a teacher by several criteria.

  python -m launch.analyse --config=configs/analyse.py --config.teacher=DIR --config.data=DIR --workdir=DIR
  python -m launch.analyse --config=configs/analyse.py:sensitivity --config.teacher=DIR --config.data=DIR \
    --config.sensitivity.prompts=FILE --config.sensitivity.reference=DIR --config.sensitivity.inception=FILE \
    --workdir=DIR
  python -m launch.analyse --config=configs/analyse.py:shapes,sensitivity --workdir=DIR

Without a variant: magnitude, Taylor and output error, with 1,000 calibration images.

Variants, which may be combined:
  sensitivity  output error, CLIP score and Frechet distance of images without each block, pair of blocks and skip
  shapes       the shapes teacher; two minutes on two CPU cores, twelve with `sensitivity` and all criteria

All settings: `python -m launch.analyse --help`.
"""

from typing import Any

from ml_collections import config_dict

from bksdm_jax.analysis.config import AnalyseConfig
from launch.defaults import defaults
from launch.variants import chosen_variants

VARIANTS: dict[str, dict[str, Any]] = {
    "sensitivity": {"criteria": ("output_error", "clip", "frechet")},
    "shapes": {"teacher": "shapes_teacher", "data": "shapes_world/demo", "batch_size": 50},
}
SCORES: dict[str, dict[str, Any]] = {
    "": {"metrics": ("clip_score", "fid_pytorch_fid")},
    "shapes": {
        "metrics": ("attribute_accuracy", "clip_score_shapes", "fd_clip_shapes"),
        "reference": "shapes",
        "images": 128,
        "batch_size": 64,
        "steps": 12,
        "guidance_scale": 1.5,
    },
}


def get_config(variants: str = "") -> config_dict.ConfigDict:
    """The settings of a comma-separated list of variants."""
    chosen = chosen_variants(variants, VARIANTS)
    config = defaults(AnalyseConfig)
    for name in chosen:
        config.update(VARIANTS[name])
    config.sensitivity.update(SCORES["shapes" if "shapes" in chosen else ""])
    return config
