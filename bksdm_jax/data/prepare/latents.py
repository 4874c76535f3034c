"""Encodes a dataset of images to cached latents with a pipeline's autoencoder."""

import dataclasses
import itertools
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import grain
import jax
import numpy as np
import tensorflow_datasets as tfds
from absl import logging

from bksdm_jax.base.distributed import barrier, is_first
from bksdm_jax.base.errors import InputError, whole_number
from bksdm_jax.base.files import make_folder, read_json, require_space, write_json
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.base.precision import compute_dtype, exact_products
from bksdm_jax.base.progress import Progress
from bksdm_jax.base.signals import Interrupts
from bksdm_jax.base.workdir import claim, require_same
from bksdm_jax.data import sources
from bksdm_jax.data.encode import make_encode, require_finite_latents
from bksdm_jax.data.latents import IDENTITY, latent_features, latent_identity, to_bits
from bksdm_jax.data.loader import in_one_line
from bksdm_jax.data.prepare.config import LatentConfig
from bksdm_jax.data.prepare.shards import ShardWriters, record_path
from bksdm_jax.data.prepare.tfds_folder import PARTS, clear, write_set
from bksdm_jax.data.tfds_set import open_set
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.pipeline import Pipeline

_TEXT = 1000  # bytes of an example besides its latents, roughly
_MAY_CHANGE = ("batch_size",)
_NETWORKS = ("vae",)  # those whose weights are needed
_Chunk = tuple[str, range]  # a split, and the positions of examples in it


@one_run(is_first)
def prepare_latents(source: str, config: LatentConfig, resolution: int, chunk: int, workdir: Path) -> Path | None:
    """Makes a dataset of cached latents in `workdir` with the splits of `source`, or continues making it.

    With several processes, each encodes its share of the chunks on its own devices; all must see the same `workdir`.

    Args:
        source: folder of a TFDS dataset with `image` and `text`, as `launch.prepare` writes it, or `shapes_world/NAME`.
        config: the pipeline and how to run it.
        resolution: side of the images in pixels; 0: the pipeline's own.
        chunk: examples per file.
        workdir: the dataset's folder.

    Returns:
        the folder; None if the work was interrupted (the same call continues it).

    Raises:
        InputError: a setting, the pipeline or the source can't be used, or the disk is too small (checked first); or
            latents aren't finite.
    """
    whole_number("config", "latents.batch_size", config.batch_size)
    compute_dtype(config.dtype)  # raises for unknown names
    folder = sources.data_folder(source)
    splits = _open_splits(folder)
    pipeline = find_model(config.source(config.pipeline), networks=_NETWORKS).read(_NETWORKS)
    resolution, factor = resolution or pipeline.architectures.resolution, pipeline.architectures.factor
    if resolution % factor:
        raise InputError(f"resolution: {resolution} pixels; this autoencoder needs a multiple of {factor}")
    identity = latent_identity(pipeline, resolution, config.flip)
    settings = dataclasses.asdict(config) | {"pipeline": str(pipeline.path), "identity": dataclasses.asdict(identity)}
    settings |= {"chunk": chunk, "source": str(folder), "source_sha256": sources.fingerprint(folder)}
    require_same(workdir, settings, _MAY_CHANGE, is_first())
    if (workdir / sources.INFO).exists():
        clear(workdir)
        return workdir
    shape = pipeline.architectures.latent_shape(resolution)
    size = int(np.prod(shape)) * 2 * 2 * (2 if config.flip else 1) + _TEXT  # of an example, bytes
    _require_space(workdir, sum(map(len, splits.values())) * size)
    if is_first():
        claim(workdir, settings)
    barrier("latents claimed")
    chunks = [
        (split, range(len(examples))[start : start + chunk])
        for split, examples in splits.items()
        for start in range(0, len(examples), chunk)
    ]
    features = latent_features(shape, pipeline.networks["text_encoder"].config.max_length)
    parts = make_folder(workdir / PARTS)
    done = _encode_all(splits, chunks, parts, features, pipeline, config, resolution)
    barrier("latents encoded")
    if not done:
        return None
    if is_first():
        write_json(workdir / IDENTITY, dataclasses.asdict(identity))
        records = [read_json(record_path(parts, index)) for index in range(len(chunks))]
        write_set(workdir, "latents", "Latents of images, with captions.", features, records, tuple(splits))
    return workdir


def _encode_all(
    splits: dict[str, Sequence[sources.Example]],
    chunks: Sequence[_Chunk],
    parts: Path,
    features: tfds.features.FeaturesDict,
    pipeline: Pipeline,
    config: LatentConfig,
    resolution: int,
) -> bool:
    """Writes the missing ones of this process's chunks; False if interrupted."""
    own = range(jax.process_index(), len(chunks), jax.process_count())
    missing = [index for index in own if not record_path(parts, index).exists()]
    total, left = (sum(len(chunks[index][1]) for index in some) for some in (own, missing))
    most, encode = make_encode(pipeline.networks["vae"], config.dtype, config.batch_size, config.flip)
    with exact_products(config.dtype), Interrupts() as interrupts, Progress("images", total, total - left) as progress:
        for index in missing:
            (split, positions), size = chunks[index], 0
            with ShardWriters(parts, index, tuple(splits)) as writers:
                for examples, images in _batches(splits[split], positions, resolution, most):
                    encoded = to_bits(encode(images))
                    require_finite_latents(examples, encoded, pipeline.networks["vae"], config.dtype, "latents.dtype")
                    for example, moments in zip(examples, encoded, strict=True):
                        inputs = pipeline.caption_inputs(example.texts)
                        record = {"name": example.name, "text": list(example.texts), **inputs, "moments": moments}
                        row = features.serialize_example(record)
                        writers.write(split, row)
                        size += len(row)
                    progress.advance(len(examples))
                    if interrupts.wanted:
                        writers.drop()
                        return False
            counts = dict.fromkeys(splits, (0, 0)) | {split: (len(positions), size)}
            write_json(record_path(parts, index), {"splits": counts})
    return True


def _batches(
    examples: Sequence[sources.Example], positions: range, resolution: int, count: int
) -> Iterator[tuple[list[sources.Example], np.ndarray]]:
    """Examples and their images, uint8 [N, H, W, 3], up to `count` at a time; threads read ahead."""

    def load(index: int) -> tuple[sources.Example, np.ndarray]:
        example = examples[index]
        return example, sources.square_image(example, resolution)

    ahead = grain.ReadOptions(num_threads=16, prefetch_buffer_size=max(16, 2 * count))  # decoded images use memory
    stream = grain.MapDataset.range(positions.start, positions.stop).map(load).to_iter_dataset(ahead)
    entries = in_one_line(iter(stream))
    while batch := list(itertools.islice(entries, count)):
        yield [example for example, _ in batch], np.stack([image for _, image in batch])


def _open_splits(folder: AnyPath) -> dict[str, Sequence[sources.Example]]:
    """Every split of a prepared dataset of images."""
    if not (folder / sources.INFO).is_file():
        raise InputError(
            f"{folder}: not a prepared dataset; run launch.prepare without latents.pipeline first, "
            "then give its workdir as source"
        )
    names = list(open_set(folder).info.splits)
    if not names or not all(re.fullmatch(r"\w{1,64}", name) for name in names):
        raise InputError(
            f"{folder}: splits {names!r:.200}; expected letters, digits and underscores, since files are named by them"
        )
    splits = {name: sources.open_examples(folder, name) for name in names}
    if any(map(sources.is_cached, splits.values())):
        raise InputError(f"{folder}: already cached latents; give the dataset of images they were made from")
    return splits


def _require_space(workdir: Path, needed: int) -> None:
    logging.info("the latents will take %.1f MiB", needed / 2**20)
    written = sum(path.stat().st_size for path in workdir.rglob("*.array_record*") if path.is_file())
    require_space(workdir, max(needed - written, 0))
