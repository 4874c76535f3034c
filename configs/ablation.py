"""The ablation on the shapes world: six trainings, about an hour and a half on two CPU cores.

python -m launch.ablation --config=configs/ablation.py --workdir=runs/ablation

Expect attribute accuracies of 0.441 (task), 0.481 (and output KD), 0.325 (and feature KD) from random weights, and
of 0.825, 0.847 and 0.878 from the teacher's.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The settings that all six rows share."""
    config = config_dict.ConfigDict()
    config.student = "bk_small"  # a preset, or comma-separated names of removed blocks
    config.steps = 750  # updates of every student
    config.batch_size = 32
    config.learning_rate = 5e-4  # falls to zero along a cosine
    config.warmup_steps = 50
    config.images = 256  # held-out captions
    config.sampling_steps = 25
    config.guidance_scale = 3.0
    config.seed = 0
    config.dataset = "demo"
    return config
