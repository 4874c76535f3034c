"""Sampling as in the paper's evaluation: PNDM, 25 steps, guidance 7.5.

  python -m launch.sample --config=configs/sample.py --config.model=DIR --config.prompt="a red bicycle" --workdir=DIR

PNDM makes one more U-Net call than steps. All settings are explained in `SampleConfig` (bksdm_jax/sampling/run.py).
"""

from ml_collections import config_dict

from bksdm_jax.sampling.run import SampleConfig
from launch.defaults import defaults


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.sample`."""
    return defaults(SampleConfig)
