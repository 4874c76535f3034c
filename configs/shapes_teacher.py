"""The shapes teacher from nothing.

python -m launch.shapes_teacher --config=configs/shapes_teacher.py --workdir=runs/shapes_teacher
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The settings of the teacher that comes with the package."""
    config = config_dict.ConfigDict()
    config.seed = 0
    config.dataset = "full"  # 20,000 pictures
    config.vae_images = 8_000
    config.clip_groups = 4_000  # captions, each with three that differ in one fact
    config.vae_crops = _phase(steps=4_000, batch_size=32, learning_rate=2e-3)  # of a quarter of an image
    config.vae = _phase(steps=5_000, batch_size=8, learning_rate=1e-3)
    config.clip = _phase(steps=2_000, batch_size=32, learning_rate=1e-3)  # groups of four
    config.unet = _phase(steps=9_000, batch_size=32, learning_rate=8e-4)
    return config


def _phase(steps: int, batch_size: int, learning_rate: float) -> config_dict.ConfigDict:
    phase = config_dict.ConfigDict()
    phase.steps, phase.batch_size, phase.learning_rate = steps, batch_size, learning_rate
    phase.warmup = 100
    phase.ema_decay = 0.999
    phase.checkpoint_every = 250
    phase.log_every = 50
    return phase
