"""Sampling, by default as the model's scheduler file has it, in 25 steps at guidance 7.5.

  python -m launch.sample --config=configs/sample.py --config.model=DIR --config.prompt="a red bicycle" --workdir=DIR
  python -m launch.sample --config=configs/sample.py --config.model=DIR --config.prompts=FILE \\
      --config.protocol=bk_sdm --workdir=DIR

All settings: `python -m launch.sample --help`.
"""

from ml_collections import config_dict

from bksdm_jax.evaluation.config import SampleAndScoreConfig
from launch.defaults import defaults


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.sample`."""
    return defaults(SampleAndScoreConfig)
