"""Quality over the guidance scale (Fig. 10), and over the number of sampling steps.

  python -m launch.tradeoff --config=configs/tradeoff.py:guidance --config.models="('DIR','DIR2')" \\
    --config.prompts=FILE --config.metrics="('fid_pytorch_fid','clip_score')" --config.reference=DIR \\
    --config.inception=FILE --workdir=DIR
  python -m launch.tradeoff --config=configs/tradeoff.py:shapes,guidance --config.prompts=FILE --workdir=DIR

Variants, which may be combined:
  guidance  guidance scales 2 to 9 with 25 steps (default)
  steps     10, 15, 20, 25, 50 steps at guidance 7.5
  shapes    the bundled teacher and the metrics of the shapes world, at guidance 3 where that isn't varied

All settings: `python -m launch.tradeoff --help`.
"""

from typing import Any

from ml_collections import config_dict

from bksdm_jax.experiments.config import TradeoffConfig
from launch.defaults import defaults
from launch.variants import chosen_variants

VARIANTS: dict[str, dict[str, Any]] = {
    "guidance": {},
    "steps": {"over_steps": (10, 15, 20, 25, 50)},
    "shapes": {
        "models": ("shapes_teacher",),
        "metrics": ("attribute_accuracy", "clip_score_shapes", "fd_clip_shapes"),
        "reference": "shapes",
        "guidance_scale": 3.0,
    },
}


def get_config(variants: str = "") -> config_dict.ConfigDict:
    """The settings of a comma-separated list of variants."""
    names = chosen_variants(variants, VARIANTS)
    config = defaults(TradeoffConfig)
    if "steps" in names and "guidance" not in names:
        config.over_guidance = ()
    for name in names:
        config.update(VARIANTS[name])
    return config
