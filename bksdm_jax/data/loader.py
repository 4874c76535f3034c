"""Training batches from a Grain pipeline; each batch depends only on the seed and the step."""

import dataclasses
import functools
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from types import FrameType
from typing import Any, TypeVar

import grain
import numpy as np
from absl import flags

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.latents import CachedExample
from bksdm_jax.data.skipping import Skipping
from bksdm_jax.data.sources import Example, square_image

_ENDLESS = 2**48  # examples; Grain wants a finite number
_THREADS = 16
_LINGER = 30.0  # seconds that a worker lives after SIGTERM
_WORKER_ENDED = r"terminated unexpectedly with exit code\s+(-?\d+)"
_Entry = TypeVar("_Entry")
_CaptionInputs = Callable[[Sequence[str]], Mapping[str, np.ndarray]]


@dataclasses.dataclass(frozen=True)
class LoaderConfig:
    """How examples become batches.

    Attributes:
        resolution: side of the images in pixels.
        batch_size: images per optimiser update, over all processes.
        accumulation: micro-batches per update.
        flip: mirror half of the images.
        seed: decides order, captions, crops and flips.
        random_crop: crop at a random position along the long side instead of the centre.
        workers: processes that read and decode; 0 uses threads.
    """

    resolution: int
    batch_size: int
    accumulation: int
    flip: bool
    seed: int
    random_crop: bool = False
    workers: int = 0

    @classmethod
    def of(cls, settings: Any) -> "LoaderConfig":
        """From a run's settings, whose fields have these names."""
        return cls(**{field.name: getattr(settings, field.name) for field in dataclasses.fields(cls)})


def training_batches(
    examples: Sequence[Example | CachedExample],
    caption_inputs: _CaptionInputs,
    config: LoaderConfig,
    start_step: int = 0,
    rows: Sequence[int] | None = None,
) -> Iterator[dict[str, Any]]:
    """Endless batches from `start_step` on, in a new order each epoch.

    A batch's examples, captions, crops and flips depend only on `examples`, `seed` and the step, not on the number of
    processes or workers.

    Args:
        examples: images, or cached latents, with captions.
        caption_inputs: captions -> the pipeline's inputs for them, arrays [N, ...]; cached latents store theirs.
        start_step: the first batch is the one that an uninterrupted run sees at this step.
        rows: rows of each micro-batch that this process reads, ascending; None: all.

    Yields:
        A micro-batches of M images for this process: `captions`, arrays [A, M, ...] by name, and `images` uint8
        [A, M, H, W, 3] or, from cached latents, `moments` uint16 [A, M, 2, h, w, C]: mean and log-variance, the bits
        of bfloat16.

    Raises:
        InputError: `accumulation` doesn't divide `batch_size`, or (while iterating) an image can't be read.
    """
    micro_batch, rest = divmod(config.batch_size, config.accumulation)
    if rest or not micro_batch:
        raise InputError(f"batch_size: {config.batch_size} isn't a multiple of accumulation {config.accumulation}")
    rows = range(micro_batch) if rows is None else rows
    share = len(rows)
    loaded = _shuffled(len(examples), config.seed).random_map(
        functools.partial(_load_usable, examples, caption_inputs, config)
    )
    batch, workers = config.accumulation * share, max(config.workers, 1)

    def own(position: int) -> dict[str, Any]:
        """This process's rows of each micro-batch: an image gets the same noise whatever the number of processes."""
        turn, worker = divmod(position, workers)  # Grain deals positions to the workers in turn
        step, offset = divmod(turn, batch)
        index, row = divmod(offset, share)
        step = start_step + step * workers + worker
        return loaded[step * config.batch_size + index * micro_batch + rows[row]]

    length = (len(loaded) // config.batch_size - start_step) // workers * workers * batch
    examples_ahead = grain.ReadOptions(num_threads=_THREADS if not config.workers else 1, prefetch_buffer_size=256)
    stream = grain.MapDataset.range(length).map(own).to_iter_dataset(examples_ahead)
    stream = stream.batch(share).batch(config.accumulation)
    if config.workers:
        if not flags.FLAGS.is_parsed():  # Grain reads a flag when it starts a process
            flags.FLAGS.mark_as_parsed()
        options = grain.MultiprocessingOptions(config.workers, per_worker_buffer_size=2)
        stream = stream.mp_prefetch(options, _start_worker)
    return in_one_line(iter(stream))


def batch_names(examples: Sequence[Example | CachedExample], config: LoaderConfig, step: int) -> list[str]:
    """The names of the examples in the batch that `training_batches` begins with for `start_step` `step`."""
    order, first = _shuffled(len(examples), config.seed), step * config.batch_size
    return [examples[int(order[first + row])].name for row in range(config.batch_size)]


def _shuffled(count: int, seed: int) -> grain.MapDataset:
    """The numbers of examples, in a new order each epoch."""
    return grain.MapDataset.range(count).seed(seed).shuffle().repeat(max(1, _ENDLESS // count))


def _load_usable(
    examples: Sequence[Example | CachedExample],
    caption_inputs: _CaptionInputs,
    config: LoaderConfig,
    index: int,
    rng: np.random.Generator,
) -> dict[str, Any]:
    """Loads example `index` or, of `Skipping` examples, the first usable one from there on."""
    if not isinstance(examples, Skipping):
        return _load(caption_inputs, config, examples[index], rng)
    for ahead in range(len(examples)):
        example = examples[(index + ahead) % len(examples)]
        try:
            return _load(caption_inputs, config, example, rng)
        except InputError as error:
            examples.note(example.name, error)
    raise InputError(f"{examples.path}: none of the {len(examples)} images can be used")


def _load(
    caption_inputs: _CaptionInputs, config: LoaderConfig, example: Example | CachedExample, rng: np.random.Generator
) -> dict[str, Any]:
    """Turns an example into a row of a batch, with random caption, crop and flip."""
    caption = int(rng.integers(len(example.texts))) if len(example.texts) > 1 else 0
    if isinstance(example, CachedExample):
        position = float(rng.random()) if config.random_crop else 0.0
        mirrored = config.flip and rng.random() < 0.5
        return {"moments": example.moments(mirrored, position), "captions": example.caption_inputs(caption)}
    where = (float(rng.random()), float(rng.random())) if config.random_crop else (0.5, 0.5)
    mirrored = config.flip and rng.random() < 0.5
    pixels = square_image(example, config.resolution, where, mirrored)
    inputs = caption_inputs([example.texts[caption]])
    return {"images": pixels, "captions": {name: value[0] for name, value in inputs.items()}}


def _start_worker(index: int, count: int) -> None:
    """Leaves signals to the parent, which may get them too, and saves before it ends its workers."""
    del index, count
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, _end_later)


def _end_later(number: int, frame: FrameType | None) -> None:
    """Schedulers signal all processes at once; the parent's last update needs a batch."""
    threading.Timer(_LINGER, os._exit, (128 + number,)).start()


def in_one_line(entries: Iterator[_Entry]) -> Iterator[_Entry]:
    """Reduces errors to their first line: Grain appends advice, and wraps what a worker raised.

    Closes `entries` at its end, if they can be closed.
    """
    try:
        yield from entries
    except Exception as error:
        said = str(error)
        if not isinstance(error, InputError):
            wrapped = re.findall(rf"{InputError.__module__}\.{InputError.__name__}: (.+)", said)
            if not wrapped and (killed := re.search(_WORKER_ENDED, said)):
                wrapped = [
                    f"workers: a process that reads data ended with exit code {killed[1]}; if the system killed it "
                    "(-9), memory was short: use fewer workers"
                ]
            if not wrapped:
                raise
            said = wrapped[-1]
        raise InputError(said.splitlines()[0]) from error
    finally:
        if close := getattr(entries, "close", None):
            close()
