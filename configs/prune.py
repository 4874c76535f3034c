"""Cutting a student from a teacher: seconds, and memory for the teacher's weights, on any CPU.

  python -m launch.prune --config=configs/prune.py --config.teacher=DIR --config.student=bk_tiny --workdir=DIR

Expect the U-Net parameters that `PRESETS` (bksdm_jax/pruning/presets.py) has for the student. Every setting is
explained in `PruneConfig` (bksdm_jax/pruning/prune.py).
"""

from ml_collections import config_dict

from bksdm_jax.pruning.prune import PruneConfig
from launch.defaults import defaults


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.prune`, and BK-SDM-Small."""
    config = defaults(PruneConfig)
    config.student = "bk_small"
    return config
