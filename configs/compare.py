"""Comparing a pipeline with PyTorch Diffusers in float32: minutes at full size on a CPU (`--config.steps=0`: no image).

  python -m launch.compare --config=configs/compare.py --config.model=MODEL --workdir=runs/compared

Expect every network within 1e-4 of its largest output, and images within 2 levels of 255. Every setting is explained in
`CompareConfig` (bksdm_jax/interop/parity.py).
"""

from ml_collections import config_dict

from bksdm_jax.interop.parity import CompareConfig
from launch.defaults import defaults


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.compare`."""
    return defaults(CompareConfig)
