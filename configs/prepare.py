"""Images with captions made a set that training reads: on any CPU, some hundred images a second and core.

  python -m launch.prepare --config=configs/prepare.py --config.source=DIR --workdir=DIR

The workdir is the set: name it as `--config.data` of `launch.train`. With `--config.latents.pipeline=TEACHER`, and such
a set as the source, it becomes one of cached latents, from which training never runs the autoencoder.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.prepare`."""
    config = config_dict.ConfigDict()
    config.source = ""  # folder of images with a table, of WebDataset .tar files, or of a TFDS set; required
    config.kind = "auto"  # or folder, tars, tfds
    config.split = "train"  # of a TFDS set
    config.image_column = ""  # empty: file_name in a table, image in a TFDS set
    config.text_column = ""  # empty: text; caption in an archive's .json
    config.validation = 0.01  # share kept out of training, by a hash of the names
    config.resolution = 0  # short side that larger images are shrunk to; 0: all stay as they are
    config.most_pixels = 89_478_485  # of an image; more is a reject
    config.most_rejects = 0.1  # share of the pairs above which the whole is given up
    config.chunk = 1000  # rows that a worker takes at a time
    config.workers = 0  # processes; 0: as many as there are cores
    config.latents = config_dict.ConfigDict(
        {
            "pipeline": "",  # makes cached latents: the teacher of the runs they are for; the source is then a set
            "revision": "",
            "variant": "",
            "tokenizer": "",
            "prediction": "",
            "flip": True,  # of the mirrored images too
            "dtype": "float32",  # of the autoencoder
            "batch_size": 4,  # images on each device
        }
    )
    return config
