"""The demo on the shapes world.

  python -m launch.demo --config=configs/demo.py --workdir=runs/demo

Takes 4 minutes on two CPU cores. Expect these attribute accuracies on 256 held-out captions: teacher 94.4%, untrained
student 24.8%, student trained without KD 57.5%, with KD 72.6%. With few sampler steps, less guidance works better: the
teacher reaches 85.2% with 15 steps at guidance 3, but with 12 steps at 1.5 as much as with 25 steps.

Variants:
  short  a few updates and images, which only checks that everything runs

All settings: `python -m launch.demo --help`.
"""

from ml_collections import config_dict

from bksdm_jax.experiments.config import ComparisonConfig
from launch.defaults import defaults
from launch.variants import chosen_variants

VARIANTS = ("short",)


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """The demo's settings; variant `short` has few updates and images."""
    chosen = chosen_variants(variant, VARIANTS)
    config = defaults(ComparisonConfig)
    config.steps, config.learning_rate = 100, 8e-4
    config.sampling_steps, config.guidance_scale = 12, 1.5
    if chosen:
        config.steps, config.warmup_steps, config.images, config.sampling_steps = 6, 2, 16, 5
    return config
