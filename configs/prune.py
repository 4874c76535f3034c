"""Prunes a teacher to a student; takes seconds on a CPU, and memory for the teacher's weights.

  python -m launch.prune --config=configs/prune.py --config.teacher=DIR --config.student=bk_tiny --workdir=DIR

Expect the U-Net parameters listed in `PRESETS` (bksdm_jax/pruning/presets.py).

All settings: `python -m launch.prune --help`.
"""

from ml_collections import config_dict

from bksdm_jax.pruning.config import PruneConfig
from launch.defaults import defaults


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.prune`, with BK-SDM-Small as the student."""
    config = defaults(PruneConfig)
    config.student = "bk_small"
    return config
