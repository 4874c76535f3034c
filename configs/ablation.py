"""The ablation on the shapes world: six trainings, about an hour and a half on two CPU cores.

  python -m launch.ablation --config=configs/ablation.py --workdir=runs/ablation

Expect attribute accuracies of 0.441 (task), 0.481 (and output KD), 0.325 (and feature KD) from random weights, and
of 0.825, 0.847 and 0.878 from the teacher's. Every setting is explained in `ComparisonConfig`
(bksdm_jax/experiments/comparison.py).
"""

from ml_collections import config_dict

from bksdm_jax.experiments.comparison import ComparisonConfig
from launch.defaults import defaults


def get_config() -> config_dict.ConfigDict:
    """The settings that all six rows share."""
    config = defaults(ComparisonConfig)
    config.steps, config.warmup_steps = 750, 50
    return config
