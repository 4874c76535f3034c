"""The shapes world's own scores, from the facts that a reader recognises in an image."""

import dataclasses
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.progress import Progress
from bksdm_jax.data.image_folder import FileExample
from bksdm_jax.metrics.attributes import attribute_scores, unreadable_share
from bksdm_jax.metrics.features import Batch
from bksdm_jax.shapes.reader import read_scene
from bksdm_jax.shapes.scenes import Scene, parse_caption
from bksdm_jax.shapes.world import example


class SceneReader:
    """Reads the scenes of batches on their way to the extractors."""

    def __init__(self) -> None:
        self._asked: list[Scene] = []
        self._shown: list[Scene] = []

    def watch(self, batches: Iterable[Batch]) -> Iterator[Batch]:
        """Yields the same batches; raises `InputError` at a caption that isn't of the shapes world."""
        for images, captions in batches:
            self._asked += map(parse_caption, captions)
            self._shown += map(read_scene, images)
            yield images, captions

    def scores(self) -> dict[str, Any]:
        """`attribute_accuracy` by group, each with its interval, chance and number of facts, and `unreadable`."""
        attributes = {
            group: {**dataclasses.asdict(entry.accuracy), "chance": entry.chance, "facts": entry.facts}
            for group, entry in attribute_scores(self._asked, self._shown).items()
        }
        return {"attribute_accuracy": attributes, "unreadable": unreadable_share(self._shown)}


def require_captions(folder: str, examples: Sequence[FileExample]) -> None:
    """Raises `InputError` at the first caption of a folder that isn't of the shapes world."""
    for number, entry in enumerate(examples, start=1):
        try:
            parse_caption(entry.text)
        except InputError as error:
            raise InputError(f"{folder}/metadata.csv: row {number}: {error}") from error


def heldout_batches(count: int, batch_size: int) -> Iterator[Batch]:
    """Renders the first `count` held-out pictures, with their captions."""
    with Progress("rendering real pictures", count) as progress:
        for start in range(0, count, batch_size):
            pairs = [example("heldout", index) for index in range(start, min(start + batch_size, count))]
            yield np.stack([picture for picture, _ in pairs]), [text for _, text in pairs]
            progress.advance(len(pairs))
