"""Converts captioned images into a training dataset: on any CPU, a few hundred images per second per core.

  python -m launch.prepare --config=configs/prepare.py --config.source=DIR --workdir=DIR

The workdir is the dataset: name it as `--config.data` of `launch.train`. With `--config.latents.pipeline=TEACHER`, and
such a dataset as the source, it becomes one of cached latents, from which training never runs the autoencoder. Every
setting is explained in `PrepareConfig` (bksdm_jax/data/prepare/prepare.py) and `LatentConfig` (latents.py beside it).
"""

from ml_collections import config_dict

from bksdm_jax.data.prepare.prepare import PrepareConfig
from launch.defaults import defaults


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.prepare`."""
    return defaults(PrepareConfig)
