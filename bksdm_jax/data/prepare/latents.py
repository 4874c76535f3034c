"""Encodes a dataset of images to cached latents with a pipeline's autoencoder."""

import dataclasses
import itertools
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import grain
import jax
import jax.numpy as jnp
import numpy as np
import tensorflow_datasets as tfds
from absl import logging
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from bksdm_jax.base.distributed import barrier, is_first
from bksdm_jax.base.errors import InputError, whole_number
from bksdm_jax.base.files import make_folder, read_json, require_space, write_json
from bksdm_jax.base.images import to_unit
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.base.precision import cast_frozen, compute_dtype, exact_products
from bksdm_jax.base.progress import Progress
from bksdm_jax.base.signals import Interrupts
from bksdm_jax.base.workdir import claim, require_same
from bksdm_jax.data.cached import IDENTITY, latent_features, to_bits
from bksdm_jax.data.latents import latent_identity
from bksdm_jax.data.loader import in_one_line
from bksdm_jax.data.prepare.shards import ShardWriters, record_path
from bksdm_jax.data.prepare.tfds_folder import INFO, PARTS, clear, write_set
from bksdm_jax.data.sources import Example, data_folder, fingerprint, is_cached, open_examples, open_set, square_image
from bksdm_jax.models.vae import VAE, VAEConfig
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pipelines.source import ModelOptions

_TEXT = 1000  # bytes of an example besides its latents, roughly
_MAY_CHANGE = ("batch_size",)
_NETWORKS = ("vae",)  # those whose weights are needed
Encode = Callable[[np.ndarray], np.ndarray]


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
class _Chunk:
    split: str
    start: int
    end: int


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
        InputError: a setting, the pipeline or the source can't be used, or the disk is too small (checked first).
    """
    whole_number("config", "latents.batch_size", config.batch_size)
    dtype = compute_dtype(config.dtype)
    folder = data_folder(source)
    splits = _open_splits(folder)
    pipeline = find_model(config.source(config.pipeline), networks=_NETWORKS).read(_NETWORKS)
    vae = pipeline.networks["vae"]
    resolution = resolution or pipeline.architectures.resolution
    if resolution % vae.config.factor:
        raise InputError(f"resolution: {resolution} pixels; this autoencoder needs a multiple of {vae.config.factor}")
    identity = latent_identity(pipeline, resolution, config.flip)
    settings = dataclasses.asdict(config) | {"pipeline": str(pipeline.path), "identity": dataclasses.asdict(identity)}
    settings |= {"chunk": chunk, "source": str(folder), "source_sha256": fingerprint(folder)}
    require_same(workdir, settings, _MAY_CHANGE)
    if (workdir / INFO).exists():
        clear(workdir)
        return workdir
    shape = pipeline.architectures.latent_shape(resolution)
    _require_space(workdir, sum(map(len, splits.values())) * _bytes(shape, config.flip))
    if is_first():
        claim(workdir, settings)
    barrier("latents claimed")
    chunks = [
        _Chunk(split, start, min(start + chunk, len(examples)))
        for split, examples in splits.items()
        for start in range(0, len(examples), chunk)
    ]
    features = latent_features(shape, pipeline.networks["text_encoder"].config.max_length)
    parts = make_folder(workdir / PARTS)
    with exact_products(config.dtype):
        params = cast_frozen(vae.params, dtype)
        encode = make_encode(vae.config, params, dtype, config.flip, config.batch_size)
        done = _encode_all(splits, chunks, parts, features, pipeline, encode, resolution)
    barrier("latents encoded")
    if not done:
        return None
    if is_first():
        write_json(workdir / IDENTITY, dataclasses.asdict(identity))
        records = [read_json(record_path(parts, index)) for index in range(len(chunks))]
        write_set(workdir, "latents", "Latents of images, with captions.", features, records, tuple(splits))
    return workdir


def make_encode(vae: VAEConfig, params: Any, dtype: jnp.dtype, flip: bool, batch_size: int) -> tuple[int, Encode]:
    """Builds the function that encodes a batch on this process's devices.

    Args:
        vae, params: the autoencoder.
        dtype: of its computations.
        flip: also encode mirrored images.
        batch_size: images per device.

    Returns:
        the largest batch size; a function uint8 [N, H, W, 3] -> float32 [N, 1 or 2 (mirrored), 2 (mean,
        log-variance), h, w, C].
    """
    devices = jax.local_devices()
    mesh = jax.make_mesh((len(devices),), ("data",), axis_types=(AxisType.Auto,), devices=devices)
    split, replicated = (NamedSharding(mesh, PartitionSpec(*axes)) for axes in (("data",), ()))
    params = jax.device_put(params, replicated)
    count = batch_size * len(devices)

    def encode(params: Any, images: jax.Array) -> jax.Array:
        views = [images, images[:, :, ::-1]] if flip else [images]
        moments = [VAE(vae, dtype).apply({"params": params}, to_unit(view), method="encode") for view in views]
        return jnp.stack([jnp.stack(pair, axis=1) for pair in moments], axis=1).astype(jnp.float32)

    program = jax.jit(encode, in_shardings=(replicated, split), out_shardings=split)

    def run(images: np.ndarray) -> np.ndarray:
        padded = np.concatenate([images, np.zeros((count - len(images), *images.shape[1:]), np.uint8)])
        return np.asarray(program(params, jax.device_put(padded, split)))[: len(images)]

    return count, run


def _encode_all(
    splits: dict[str, Sequence[Example]],
    chunks: Sequence[_Chunk],
    parts: Path,
    features: tfds.features.FeaturesDict,
    pipeline: Pipeline,
    encode: tuple[int, Encode],
    resolution: int,
) -> bool:
    """Writes the missing ones of this process's chunks; False if interrupted."""
    own = [index for index in range(len(chunks)) if index % jax.process_count() == jax.process_index()]
    missing = [index for index in own if not record_path(parts, index).exists()]
    sizes = {index: chunks[index].end - chunks[index].start for index in own}
    finished = sum(sizes.values()) - sum(sizes[index] for index in missing)
    with Interrupts() as interrupts, Progress("images", sum(sizes.values()), finished) as progress:
        for index in missing:
            chunk, total = chunks[index], 0
            with ShardWriters(parts, index, tuple(splits)) as writers:
                for examples, images in _batches(splits[chunk.split], chunk, resolution, encode[0]):
                    for example, moments in zip(examples, to_bits(encode[1](images)), strict=True):
                        inputs = pipeline.caption_inputs(example.texts)
                        record = {"name": example.name, "text": list(example.texts), **inputs, "moments": moments}
                        row = features.serialize_example(record)
                        writers.write(chunk.split, row)
                        total += len(row)
                    progress.advance(len(examples))
                    if interrupts.wanted:
                        writers.drop()
                        return False
            counts = {split: [sizes[index], total] if split == chunk.split else [0, 0] for split in splits}
            write_json(record_path(parts, index), {"splits": counts})
    return True


def _batches(
    examples: Sequence[Example], chunk: _Chunk, resolution: int, count: int
) -> Iterator[tuple[list[Example], np.ndarray]]:
    """The chunk's examples and their images, uint8 [N, H, W, 3], up to `count` at a time; threads read ahead."""

    def load(index: int) -> tuple[Example, np.ndarray]:
        example = examples[index]
        return example, square_image(example, resolution)

    ahead = grain.ReadOptions(num_threads=16, prefetch_buffer_size=max(16, 2 * count))  # decoded images use memory
    stream = grain.MapDataset.range(chunk.start, chunk.end).map(load).to_iter_dataset(ahead)
    entries = in_one_line(iter(stream))
    while batch := list(itertools.islice(entries, count)):
        yield [example for example, _ in batch], np.stack([image for _, image in batch])


def _open_splits(folder: AnyPath) -> dict[str, Sequence[Example]]:
    """Every split of a prepared dataset of images."""
    if not (folder / INFO).is_file():
        raise InputError(
            f"{folder}: not a prepared dataset; run launch.prepare without latents.pipeline first, "
            "then give its workdir as source"
        )
    names = list(open_set(folder).info.splits)
    if not names or not all(re.fullmatch(r"\w{1,64}", name) for name in names):
        raise InputError(
            f"{folder}: splits {names!r:.200}; expected letters, digits and underscores, since files are named by them"
        )
    splits = {name: open_examples(folder, name) for name in names}
    if any(map(is_cached, splits.values())):
        raise InputError(f"{folder}: already cached latents; give the dataset of images they were made from")
    return splits


def _require_space(workdir: Path, needed: int) -> None:
    logging.info("the latents will take %.1f MiB", needed / 2**20)
    written = sum(path.stat().st_size for path in workdir.rglob("*.array_record*") if path.is_file())
    require_space(workdir, max(needed - written, 0))


def _bytes(shape: Sequence[int], flip: bool) -> int:
    """The size of one example in bytes."""
    return int(np.prod(shape)) * 2 * 2 * (2 if flip else 1) + _TEXT
