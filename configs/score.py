"""Attribute accuracy, CLIP score and Frechet distance of images of the shapes world; seconds on a CPU.

python -m launch.score --config=configs/score.py --config.images=DIR --workdir=DIR

The teacher that comes with the package and its students are scored beside each other by `make demo`.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.score`."""
    config = config_dict.ConfigDict()
    config.images = ""  # folder with metadata.csv (file_name,text); required
    config.reference = ""  # such a folder of real pictures; empty: held-out ones, rendered
    config.reference_count = 1000  # how many of these
    config.batch_size = 64  # images per program call; changes nothing but the speed
    return config
