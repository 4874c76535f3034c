"""Attribute accuracy, CLIP score and Frechet distance of images of the shapes world; takes seconds on a CPU.

  python -m launch.score --config=configs/score.py --config.images=DIR --workdir=DIR

`make demo` scores the bundled teacher and its students side by side. All settings are explained in `ScoreConfig`
(bksdm_jax/metrics/score.py).
"""

from ml_collections import config_dict

from bksdm_jax.metrics.score import ScoreConfig
from launch.defaults import defaults


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.score`."""
    return defaults(ScoreConfig)
