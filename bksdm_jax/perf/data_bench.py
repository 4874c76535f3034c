"""The speed of reading training data on this machine, and the memory that preparing them takes."""

import io
import multiprocessing
import os
import re
import statistics
import tempfile
import timeit
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bksdm_jax.base.errors import whole_number
from bksdm_jax.base.progress import waiting
from bksdm_jax.data.decode import fit_square, open_image, to_rgb
from bksdm_jax.data.forms.pairs import Pair, StoredFile
from bksdm_jax.data.latents import latent_features
from bksdm_jax.data.loader import LoaderConfig, training_batches
from bksdm_jax.data.options import SourceOptions
from bksdm_jax.data.pair_examples import PairExamples
from bksdm_jax.data.prepare.config import PrepareConfig
from bksdm_jax.data.prepare.prepare import prepare
from bksdm_jax.data.prepare.shards import TRAIN, ShardWriters
from bksdm_jax.data.prepare.tfds_folder import PARTS, write_set
from bksdm_jax.data.sources import open_examples
from bksdm_jax.data.tables import write_table

_FILES, _BATCH = 512, 32
_REPEATED = 1024  # copies of the list of files, since shuffling few examples is slow
_LATENTS = 1024
_FEW, _MANY = 2_000, 20_000
_TOKENS = 77


def bench_data(resolution: int, repeats: int) -> str:
    """Measures in a temporary folder and returns the lines to print.

    Args:
        resolution: of the images, pixels; the latents' is an eighth.
        repeats: timed runs of each program, which take turns; the medians are reported.

    Raises:
        InputError: a setting that can't be used.
    """
    whole_number("config", "resolution", resolution, 8, 4096)
    whole_number("config", "repeats", repeats)
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        with waiting("decoding images"):
            lines = [*_decoding(folder / "images", resolution, repeats)]
        with waiting("reading latents"):
            lines += _latents(folder / "latents", resolution, repeats)
        with waiting("preparing images"):
            lines += _memory(folder)
        return "\n".join(lines)


def _decoding(folder: Path, resolution: int, repeats: int) -> Iterator[str]:
    """Pillow alone, this package's function, and the training stream on all cores, on the same files."""
    folder.mkdir()
    paths = [folder / f"{index:03d}.jpg" for index in range(_FILES)]
    for index, path in enumerate(paths):
        path.write_bytes(_photograph(index, resolution, "JPEG"))

    def pillow() -> None:
        for path in paths:
            image = Image.open(path).convert("RGB")
            np.asarray(image.resize((resolution, resolution), Image.Resampling.BILINEAR).crop((0, 0, *image.size)))

    def ours() -> None:
        for path in paths:
            fit_square(to_rgb(open_image(path.read_bytes())), resolution)

    cores = os.cpu_count() or 1
    pairs = [Pair(path.name, StoredFile(path), ("a caption",), times=_REPEATED) for path in paths]
    examples = PairExamples(folder, pairs, SourceOptions())
    stream = _stream(examples, resolution, cores)
    rates = _rates({"Pillow": pillow, "ours": ours}, _FILES, repeats)
    rates |= _rates({"stream": lambda: _take(stream, 4 * _FILES)}, 4 * _FILES, repeats)  # far more than is prefetched
    ratio = rates["ours"] / rates["Pillow"]
    yield f"decoding JPEG, {resolution}x{resolution}, one core: {rates['ours']:.0f} images/s"
    yield f"  Pillow's open, resize, crop on one core: {rates['Pillow']:.0f} ({ratio:.2f}x)"
    yield f"  training stream, {cores} workers: {rates['stream']:.0f} ({rates['stream'] / cores:.0f} per core)"


def _latents(folder: Path, resolution: int, repeats: int) -> Iterator[str]:
    shape = (resolution // 8, resolution // 8, 4)
    features, parts = latent_features(shape, _TOKENS), folder / PARTS
    parts.mkdir(parents=True)
    bits = np.random.default_rng(0).integers(0, 0x7F80, (2, 2, *shape), np.uint16)  # finite bfloat16 numbers
    tokens = np.zeros((1, _TOKENS), np.int32)
    total = 0
    with ShardWriters(parts, 0) as writers:
        for index in range(_LATENTS):
            row = features.serialize_example({"name": str(index), "text": ["x"], "tokens": tokens, "moments": bits})
            writers.write(TRAIN, row)
            total += len(row)
    write_set(folder, "latents", "", features, [{"splits": {TRAIN: [_LATENTS, total]}}], (TRAIN,))
    stream = _stream(open_examples(folder), resolution)
    rates = _rates({"cached": lambda: _take(stream, _LATENTS)}, _LATENTS, repeats)
    sizes = "x".join(map(str, shape))
    yield f"reading cached latents, {sizes}, on {os.cpu_count()} cores: {rates['cached']:.0f} images/s"


def _memory(folder: Path) -> Iterator[str]:
    """Peak memory, each in a new process, since a process's peak never falls."""
    peaks = []
    for count in (_FEW, _MANY):
        source = folder / f"source_{count}"
        source.mkdir()
        names = [f"{index:05d}.png" for index in range(count)]
        data = _photograph(0, 64, "PNG")
        for name in names:
            (source / name).write_bytes(data)
        write_table(source / "metadata.csv", ("file_name", "text"), [(name, "a caption") for name in names])
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as fresh:
            peaks.append(fresh.submit(_peak_of_preparing, source, folder / f"set_{count}").result() / 2**20)
    yield f"preparing {_FEW:,} and {_MANY:,} images: peak resident memory {peaks[0]:.0f} and {peaks[1]:.0f} MiB"


def _peak_of_preparing(source: Path, workdir: Path) -> int:
    """Peak resident memory of this process when it has prepared a dataset, bytes."""
    prepare(PrepareConfig(str(source), workers=1), workdir)
    status = Path("/proc/self/status").read_text(encoding="ascii")  # `getrusage` includes the parent's peak
    return int(re.search(r"VmHWM:\s+(\d+) kB", status)[1]) * 1024


def _stream(examples: Sequence[object], resolution: int, workers: int = 0) -> Iterator[dict[str, Any]]:
    config = LoaderConfig(resolution, _BATCH, 1, flip=True, seed=0, workers=workers)
    return training_batches(examples, _no_tokens, config)


def _take(stream: Iterator[dict[str, Any]], count: int) -> None:
    for _ in range(count // _BATCH):
        next(stream)


def _no_tokens(texts: Sequence[str]) -> dict[str, np.ndarray]:
    return {"tokens": np.zeros((len(texts), _TOKENS), np.int32)}


def _rates(programs: dict[str, Callable[[], object]], count: int, repeats: int) -> dict[str, float]:
    """Median images per second of each program; the programs take turns, and the first turn isn't counted."""
    turns = [{name: timeit.timeit(program, number=1) for name, program in programs.items()} for _ in range(repeats + 1)]
    return {name: count / statistics.median(turn[name] for turn in turns[1:]) for name in programs}


def _photograph(seed: int, size: int, file_format: str) -> bytes:
    """An image file that compresses like a photograph: smooth colours and some noise."""
    generator = np.random.default_rng(seed)
    smooth = Image.fromarray(generator.integers(0, 256, (8, 8, 3), np.uint8)).resize((size, size))
    noise = generator.normal(0, 6, (size, size, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.clip(np.asarray(smooth) + noise, 0, 255).astype(np.uint8)).save(buffer, file_format)
    return buffer.getvalue()
