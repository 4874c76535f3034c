"""Compares a pipeline with PyTorch Diffusers in float32.

  python -m launch.compare --config=configs/compare.py --config.model=MODEL --workdir=runs/compared

At full size this takes minutes on a CPU; `--config.steps=0` skips the images. Expect differences of at most 1e-4 of a
network's largest output, and of 2/255 in images. All settings: `python -m launch.compare --help`.
"""

from ml_collections import config_dict

from bksdm_jax.interop.config import CompareConfig
from launch.defaults import defaults


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.compare`."""
    return defaults(CompareConfig)
