"""The ablation on the shapes world: six runs, 1.5 hours in total on two CPU cores.

  python -m launch.ablation --config=configs/ablation.py --workdir=runs/ablation

Expect these attribute accuracies with the task loss, with output KD added, and with feature KD added: 0.441, 0.481 and
0.325 from random weights; 0.825, 0.847 and 0.878 from the teacher's. All settings: `python -m launch.ablation --help`.
"""

from ml_collections import config_dict

from bksdm_jax.experiments.config import ComparisonConfig
from launch.defaults import defaults


def get_config() -> config_dict.ConfigDict:
    """The settings of all six runs."""
    config = defaults(ComparisonConfig)
    config.steps, config.warmup_steps = 750, 50
    return config
