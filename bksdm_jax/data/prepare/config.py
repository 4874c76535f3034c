"""The settings of `launch.prepare`."""

import dataclasses

from bksdm_jax.base.errors import finite_number, known_name, whole_number
from bksdm_jax.data.decode import MOST_PIXELS
from bksdm_jax.data.options import KINDS, ImageOptions, SourceOptions, require_options
from bksdm_jax.pipelines.source import ModelOptions


@dataclasses.dataclass(frozen=True, kw_only=True)
class ShardOptions(ImageOptions):
    """How pairs are stored.

    Attributes:
        validation: share of the examples that go to the validation split, by a hash of their names, unless the source
            has splits.
        resolution: short side in pixels that larger images are downscaled to; 0: keep all sizes.
        most_pixels: images of more pixels (width times height) are rejected.
        background, least_side: as in `ImageOptions`.
    """

    validation: float = 0.01
    resolution: int = 0
    most_pixels: int = MOST_PIXELS


@dataclasses.dataclass(frozen=True)
class LatentConfig(ModelOptions):
    """How latents are made.

    Attributes:
        pipeline: the teacher of the runs that will use them: folder, single file, hub id or `shapes_teacher`; empty:
            make no latents.
        revision, variant, tokenizer, prediction, allow_non_finite: of the pipeline, as in `ModelSource`.
        flip: also encode mirrored images.
        dtype: of the autoencoder's computations.
        batch_size: images per device and call.
    """

    pipeline: str = ""
    flip: bool = True
    dtype: str = "float32"
    batch_size: int = 4


@dataclasses.dataclass(frozen=True)
class PrepareConfig(ShardOptions, SourceOptions):
    """The dataset to make.

    Attributes:
        source: images with captions: a folder with `metadata.csv`, `.tsv` or `.jsonl`, or with a `.txt`, `.caption` or
            `.json` beside each image, or of `.tar`, `.tar.gz` or Parquet files, or with folders `train/` and
            `validation/` of these; COCO's captions file; one table, archive or Parquet file; the folder of a TFDS
            dataset's version.
        kind: `table`, `files` (captions beside images), `coco`, `tars`, `parquet` or `tfds`; `auto` detects it.
        split: of a TFDS dataset, to use it as a whole; empty: all, kept as splits.
        image_column, text_column, caption, repeats, coco_images, background, least_side: as in `SourceOptions`.
        validation, resolution, most_pixels: as in `ShardOptions`.
        most_rejects: share of rejects above which the command stops.
        chunk: images that a worker takes at a time; each chunk becomes a file of the dataset.
        workers: worker processes; 0: one per core.
        latents: set its `pipeline` to make a dataset of cached latents from a prepared dataset; `resolution` is then
            that of the latents (0: the pipeline's own), and of the other settings only `chunk` is used.
    """

    source: str
    kind: str = "auto"
    split: str = ""
    most_rejects: float = 0.1
    chunk: int = 1000
    workers: int = 0
    latents: LatentConfig = LatentConfig()


def require_settings(config: PrepareConfig) -> None:
    """Raises `InputError`, with the key, for a setting that is out of range; reads no files."""
    known_name("config", "kind", config.kind, KINDS)
    for key, least in {"resolution": 0, "chunk": 1, "workers": 0}.items():
        whole_number("config", key, getattr(config, key), least)
    whole_number("config", "most_pixels", config.most_pixels, 1, MOST_PIXELS)
    for key in ("validation", "most_rejects"):
        finite_number("config", key, getattr(config, key), 0, 1)
    require_options(config)
