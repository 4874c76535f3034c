"""Scores the blocks of a teacher by three criteria.

  python -m launch.analyse --config=configs/analyse.py:VARIANT --config.teacher=DIR --config.data=DIR --workdir=DIR

VARIANT:
  (none)   magnitude, Taylor and output error; 1,000 calibration images
  shapes   the same of the shapes teacher; two minutes on two CPU cores

All settings: `python -m launch.analyse --help`.
"""

from ml_collections import config_dict

from bksdm_jax.analysis.config import AnalyseConfig
from launch.defaults import defaults
from launch.variants import chosen_variants

VARIANTS = {"shapes": {"teacher": "shapes_teacher", "data": "shapes_world/demo", "batch_size": 50}}


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """The settings of a variant."""
    chosen = chosen_variants(variant, VARIANTS, [VARIANTS])
    config = defaults(AnalyseConfig)
    for name in chosen:
        config.update(VARIANTS[name])
    return config
