"""Parameters and multiply-adds of a pipeline and its students; takes seconds on any machine.

  python -m launch.cost --config=configs/cost.py:v1

Expect the paper's counts, listed in `PRESETS` (bksdm_jax/pruning/presets.py). All settings are explained in
`CostConfig` (bksdm_jax/perf/cost_report.py).
"""

from ml_collections import config_dict

from bksdm_jax.perf.config import CostConfig
from launch.defaults import defaults


def get_config(generation: str = "") -> config_dict.ConfigDict:
    """The defaults of `launch.cost`; variants `v1` and `v2` are Stable Diffusion itself."""
    config = defaults(CostConfig)
    config.generation = generation
    return config
