"""The settings of `launch.prepare`."""

import dataclasses

from bksdm_jax.data.decode import MOST_PIXELS
from bksdm_jax.pipelines.source import ModelOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardOptions:
    """How pairs are stored.

    Attributes:
        validation: share of the examples that go to the validation split, by a hash of their names.
        resolution: short side in pixels that larger images are downscaled to; 0: keep all sizes.
        most_pixels: images of more pixels (width times height) are rejected.
        least_side: images whose short side has fewer pixels are rejected.
        background: the colour that transparent images are laid on, as `PIL.ImageColor.getrgb` takes it (`white`,
            `#ffffff`); empty: their transparency is dropped.
    """

    validation: float = 0.01
    resolution: int = 0
    most_pixels: int = MOST_PIXELS
    least_side: int = 1
    background: str = ""


@dataclasses.dataclass(frozen=True)
class LatentConfig(ModelOptions):
    """How latents are made.

    Attributes:
        pipeline: the teacher of the runs that will use them, as `find_model` takes it; empty: make no latents.
        revision, variant, tokenizer, prediction: of the pipeline, as in `ModelSource`.
        flip: also encode mirrored images.
        dtype: of the autoencoder's computations.
        batch_size: images per device and call.
    """

    pipeline: str = ""
    flip: bool = True
    dtype: str = "float32"
    batch_size: int = 4


@dataclasses.dataclass(frozen=True)
class PrepareConfig(ShardOptions):
    """The dataset to make.

    Attributes:
        source: a folder of images with `metadata.csv` or `metadata.jsonl`, a folder of WebDataset `.tar` files, or the
            folder of a TFDS dataset.
        kind: the kind of source, one of `KINDS`; `auto` detects it.
        split: of a TFDS dataset.
        image_column, text_column: names of the table's columns or the dataset's features (`captions/text` names a
            nested one); in archives, `text_column` is the caption's key in `.json` members. Empty: `file_name` and
            `text` in tables, `image` and `text` in datasets, `caption` in archives.
        validation, resolution, most_pixels: as in `ShardOptions`.
        most_rejects: share of rejects above which the command stops.
        chunk: rows of a table that a worker takes at a time; each chunk becomes a file of the dataset.
        workers: worker processes; 0: one per core.
        latents: set its `pipeline` to make a dataset of cached latents from a prepared dataset; `resolution` is then
            that of the latents (0: the pipeline's own), and of the other settings only `chunk` is used.
    """

    source: str
    kind: str = "auto"
    split: str = "train"
    image_column: str = ""
    text_column: str = ""
    most_rejects: float = 0.1
    chunk: int = 1000
    workers: int = 0
    latents: LatentConfig = LatentConfig()
