"""The shapes teacher from nothing.

  python -m launch.shapes_teacher --config=configs/shapes_teacher.py --workdir=runs/shapes_teacher

Writes `made/teacher`, `made/clip` (float16, 16 MiB together) and their checksums: what stands in
`bksdm_jax/shapes/pretrained`. It takes a little over three hours on two CPU cores: autoencoder 33 minutes on crops
and 33 on whole pictures, CLIP 15, U-Net 100 (from its 1.5 updates a second, since other work ran beside it), and the
compilations.

Reached on held-out captions:
  autoencoder   facts read from reconstructions of 256 pictures: 95.6%; of one object 97.5%; shapes 79.5%
  CLIP          of four captions that differ in one fact the right one: 87.8% of 1,024 pictures (chance: 25%)
  U-Net         facts shown, 256 captions, 25 PNDM steps, seed 1:

  guidance scale     1.5    2.0    3.0    4.0    5.0    7.5
  all               94.0   94.0   94.6   92.1   78.3   43.8
  one object        96.5   96.9   97.6   95.5   84.9   50.3
  two objects       92.0   91.7   92.3   89.3   73.1   38.5
  shape             71.0   71.9   74.9   67.8   44.5   11.2

At 3.0, the best: colour 98.4, size 98.6, place 99.5, background 100, number of objects 99.6.

Every setting is explained in `TeacherConfig` (bksdm_jax/shapes_teacher/make.py) and `Phase` (phase.py beside it).
"""

from ml_collections import config_dict

from bksdm_jax.shapes_teacher.make import TeacherConfig
from launch.defaults import defaults

PHASES = {  # updates, batch size (CLIP's in groups of four captions), learning rate
    "vae_crops": (4_000, 32, 2e-3),  # of a quarter of an image
    "vae": (5_000, 8, 1e-3),
    "clip": (2_000, 32, 1e-3),
    "unet": (9_000, 32, 8e-4),
}


def get_config() -> config_dict.ConfigDict:
    """The settings of the teacher that comes with the package."""
    config = defaults(TeacherConfig)
    for name, (steps, batch_size, learning_rate) in PHASES.items():
        config[name].update(steps=steps, batch_size=batch_size, learning_rate=learning_rate)
    return config
