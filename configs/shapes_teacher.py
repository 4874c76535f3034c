"""Trains the shapes teacher from scratch.

  python -m launch.shapes_teacher --config=configs/shapes_teacher.py --workdir=runs/shapes_teacher

Writes `made/teacher`, `made/clip` (float16, 16 MiB together) and their checksums: the content of
`bksdm_jax/shapes/pretrained`. It takes a little over three hours on two CPU cores: 33 minutes for the autoencoder on
crops and 33 on whole pictures, 15 for CLIP, 100 for the U-Net (from 1.5 updates per second), plus compilation.

Results on held-out captions:
  autoencoder   attribute accuracy of 256 reconstructions: 95.6%; with one object 97.5%; shapes 79.5%
  CLIP          accuracy of choosing among four captions that differ in one fact: 87.8% on 1,024 pictures (chance: 25%)
  U-Net         attribute accuracy in %, 256 captions, 25 PNDM steps, seed 1:

  guidance scale     1.5    2.0    3.0    4.0    5.0    7.5
  all               94.0   94.0   94.6   92.1   78.3   43.8
  one object        96.5   96.9   97.6   95.5   84.9   50.3
  two objects       92.0   91.7   92.3   89.3   73.1   38.5
  shape             71.0   71.9   74.9   67.8   44.5   11.2

At 3.0, the best scale: colour 98.4, size 98.6, place 99.5, background 100, number of objects 99.6.

All settings: `python -m launch.shapes_teacher --help`.
"""

from ml_collections import config_dict

from bksdm_jax.shapes_teacher.config import TeacherConfig
from launch.defaults import defaults

PHASES = {  # updates, batch size (CLIP's in groups of four captions), learning rate
    "vae_crops": (4_000, 32, 2e-3),  # of a quarter of an image
    "vae": (5_000, 8, 1e-3),
    "clip": (2_000, 32, 1e-3),
    "unet": (9_000, 32, 8e-4),
}


def get_config() -> config_dict.ConfigDict:
    """The settings of the bundled teacher."""
    config = defaults(TeacherConfig)
    for name, (steps, batch_size, learning_rate) in PHASES.items():
        config[name].update(steps=steps, batch_size=batch_size, learning_rate=learning_rate)
    return config
