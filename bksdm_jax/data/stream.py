"""The stream of training batches: a Grain pipeline whose every batch follows from the seed and the step alone."""

import dataclasses
from collections.abc import Iterator, Sequence

import grain
import numpy as np

from bksdm_jax.data.sources import Example
from bksdm_jax.errors import InputError
from bksdm_jax.weights.tokenizer import Tokenizer

_ENDLESS = 2**48  # examples; Grain counts them all


@dataclasses.dataclass(frozen=True)
class StreamConfig:
    """How examples become batches.

    Attributes:
        resolution: pixels.
        batch_size: images per optimiser update, over all processes.
        accumulation: micro-batches that an update is made of.
        flip: mirror half of the images.
        seed: of order and flips.
    """

    resolution: int
    batch_size: int
    accumulation: int
    flip: bool
    seed: int


def training_batches(
    examples: Sequence[Example],
    tokenizer: Tokenizer,
    config: StreamConfig,
    start_step: int = 0,
    process: tuple[int, int] = (0, 1),
) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches from `start_step` on; every epoch has its own order.

    Args:
        examples: images and captions.
        tokenizer: of the text encoder.
        config: see there.
        start_step: the first batch is the one that an undisturbed run would see at this step.
        process: (index, count): this process reads its share of each micro-batch.

    Yields:
        `images` uint8 [A, M, H, W, 3] and `tokens` int32 [A, M, T], with A micro-batches of M images for this process.

    Raises:
        InputError: the batch doesn't divide, or (while iterating) an unreadable image.
    """
    index, count = process
    share, rest = divmod(config.batch_size, config.accumulation * count)
    if rest or not share:
        raise InputError(
            f"batch_size: {config.batch_size} doesn't divide by accumulation {config.accumulation}"
            + (f" x {count} processes" if count > 1 else "")
        )

    def load(example: Example, rng: np.random.Generator) -> dict[str, np.ndarray]:
        image = example.load(config.resolution)
        if config.flip and rng.random() < 0.5:
            image = image[:, ::-1]
        return {"images": image, "tokens": tokenizer([example.text])[0]}

    epochs = max(1, _ENDLESS // len(examples))
    loaded = grain.MapDataset.source(examples).seed(config.seed).shuffle().repeat(epochs).random_map(load)

    def own(position: int) -> dict[str, np.ndarray]:
        """This process's share of each micro-batch, so that an image meets the same noise on any number of them."""
        micro_batch, offset = divmod(position, share)
        return loaded[(micro_batch * count + index) * share + offset]

    first = start_step * config.accumulation * share
    stream = grain.MapDataset.range(first, len(loaded) // count).map(own)
    examples_ahead = grain.ReadOptions(num_threads=16, prefetch_buffer_size=256)
    return iter(stream.to_iter_dataset(examples_ahead).batch(share).batch(config.accumulation))
