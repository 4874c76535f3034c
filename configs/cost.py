"""Parameters and multiply-adds of a pipeline and its students; takes seconds on any machine.

  python -m launch.cost --config=configs/cost.py:v1

Variants:
  v1  Stable Diffusion 1.x
  v2  Stable Diffusion 2.x

Expect the paper's counts, listed in `PRESETS` (bksdm_jax/pruning/presets.py).

All settings: `python -m launch.cost --help`.
"""

from ml_collections import config_dict

from bksdm_jax.perf.config import CostConfig
from bksdm_jax.pipelines.generations import TEACHERS
from launch.defaults import defaults
from launch.variants import chosen_variants

VARIANTS = tuple(TEACHERS)


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """The defaults of `launch.cost`, with the generation that the variant names."""
    chosen = chosen_variants(variant, VARIANTS, [VARIANTS])
    config = defaults(CostConfig)
    config.generation = chosen[0] if chosen else ""
    return config
