"""Converts captioned images into a training dataset: on any CPU, a few hundred images per second per core.

  python -m launch.prepare --config=configs/prepare.py --config.source=DIR --workdir=DIR

The workdir becomes the dataset; pass it to `launch.train` as `--config.data`. With `--config.latents.pipeline=TEACHER`
and a prepared dataset as source, it becomes a dataset of cached latents, with which training doesn't run the
autoencoder. All settings: `python -m launch.prepare --help`.
"""

from ml_collections import config_dict

from bksdm_jax.data.prepare.config import PrepareConfig
from launch.defaults import defaults


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.prepare`."""
    return defaults(PrepareConfig)
