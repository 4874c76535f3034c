"""What metrics compare with: features of real images, cached by content, or statistics from a file."""

import dataclasses
import hashlib
import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL
from absl import logging

from bksdm_jax.base.errors import InputError, whole_number
from bksdm_jax.base.files import read_json
from bksdm_jax.base.locks import locked
from bksdm_jax.base.paths import MOST_READ, cache_folder, local_path
from bksdm_jax.base.progress import Progress
from bksdm_jax.evaluation.images import ImageSet, open_images
from bksdm_jax.metrics.config import FEWEST, MetricsConfig
from bksdm_jax.metrics.extractor import images_per_call
from bksdm_jax.metrics.frechet import make_normal
from bksdm_jax.metrics.gather import Extracts, Features, Pass
from bksdm_jax.metrics.inception import ONE_SIZE
from bksdm_jax.metrics.statistics_file import read_statistics
from bksdm_jax.metrics.store import Need
from bksdm_jax.metrics.table import METRICS
from bksdm_jax.pipelines.embedded import pretrained_identity
from bksdm_jax.shapes.world import example

SHAPES = "shapes"
"""The reference of rendered pictures."""
FACTS = "reference.json"
"""Beside a folder of images that `launch.reference` has made."""
_STATISTICS = ".npz"
_SHA256 = "[0-9a-f]{64}"
_READER = f"Pillow {PIL.__version__}, as stored"
"""What turns the images' files into pixels, on which cached features depend."""


@dataclasses.dataclass(frozen=True)
class Reference:
    """Features of reference images.

    Attributes:
        features: by need.
        subjects: of each image, where their rows are kept; None: unknown.
        facts: for `scores.json`: `name`, `images`, `size` in pixels (width, height), `sha256`, and `prompts`, those
            that `launch.reference` made with it: `texts_sha256`, and the `seed` of their choice or None with the
            `list_sha256` of a given file. What is unknown is None.
    """

    features: Features
    subjects: tuple[str, ...] | None
    facts: Mapping[str, Any]


class _Source(Protocol):
    """Reference images."""

    sha256: str
    subjects: tuple[str, ...] | None
    size: tuple[int, int] | None

    def __len__(self) -> int:
        """Their number."""

    def batches(self, first: int, count: int, what: str) -> Iterator[list[np.ndarray | None]]:
        """See `ImageSet.batches`."""


@dataclasses.dataclass(frozen=True)
class _Rendered:
    """The first held-out pictures of the shapes world."""

    count: int
    subjects: tuple[str, ...] | None = None
    size: tuple[int, int] | None = None

    @property
    def sha256(self) -> str:
        return hashlib.sha256(f"shapes world, {pretrained_identity()}, held-out {self.count}".encode()).hexdigest()

    def __len__(self) -> int:
        return self.count

    def batches(self, first: int, count: int, what: str) -> Iterator[list[np.ndarray | None]]:
        with Progress(what, self.count, first) as progress:
            for start in range(first, self.count, count):
                numbers = range(start, min(start + count, self.count))
                yield [example("heldout", number)[0] for number in numbers]
                progress.advance(len(numbers))


def gather_reference(
    config: MetricsConfig, needs: Collection[Need], extractors: Mapping[str, Callable[[], Extracts]]
) -> Reference | None:
    """The reference's features; None: no metric needs any.

    Raises `InputError` if the reference is missing, can't be used, or doesn't have what the metrics need.
    """
    if not needs:
        return None
    wanting = [name for name in config.metrics if METRICS[name].reference]
    if not config.reference:
        raise InputError(
            f"reference: empty, but {wanting[0]} compares with real images; give a folder of images"
            f"{' or a .npz file of statistics' if METRICS[wanting[0]].summable else ''}"
        )
    if config.reference == SHAPES:
        return _gather(config, needs, extractors, _Rendered(config.reference_count))
    path = local_path("reference", config.reference)
    if path.suffix == _STATISTICS and not path.is_dir():
        return _from_file(path, wanting, needs, extractors)
    subjects = any(METRICS[name].subjects for name in config.metrics)
    images = open_images(path, "reference", subjects=subjects, one_size=False)
    if images.unreadable:
        raise InputError(f"{images.paths[images.unreadable[0]]}: not a readable image; a reference must be whole")
    for name in sorted({need.extractor for need in needs}) if images.size is None else ():
        if (resize := extractors[name]().facts["resize"]) in ONE_SIZE:
            raise InputError(
                f"reference: {path} has images of several sizes, and the resize of {resize} takes one; make them the "
                "same first, as launch.reference does"
            )
    return _gather(config, needs, extractors, images, _prompts_beside(images))


def _prompts_beside(images: ImageSet) -> dict[str, Any] | None:
    """The prompts that `launch.reference` made with these images."""
    path = images.folder.parent / FACTS
    if not path.is_file():
        return None
    try:
        found = read_json(path, MOST_READ)
    except InputError:  # another program's
        return None
    own = found.get("images")
    if not isinstance(own, dict) or own.get("sha256") != images.sha256:
        logging.warning("%s: of other images than %s has; its prompts are taken to be unknown", path, images.folder)
        return None
    return _prompts(found)


def _prompts(facts: Mapping[str, Any]) -> dict[str, Any] | None:
    """What `launch.reference` recorded of its prompts."""
    own = facts.get("prompts")
    if not isinstance(own, dict) or not re.fullmatch(_SHA256, str(own.get("texts_sha256"))):
        return None
    seed, given = own.get("seed"), str(own.get("list_sha256"))
    return {
        "texts_sha256": own["texts_sha256"],
        "list_sha256": given if re.fullmatch(_SHA256, given) else "",
        "seed": seed if isinstance(seed, int) else None,
    }


def _gather(
    config: MetricsConfig,
    needs: Collection[Need],
    extractors: Mapping[str, Callable[[], Extracts]],
    source: _Source,
    prompts: Mapping[str, Any] | None = None,
) -> Reference:
    """From images, or what an earlier call has computed of the same ones."""
    found: dict[Need, Any] = {}
    for name in sorted({need.extractor for need in needs}):
        own = {need for need in needs if need.extractor == name}
        record = {"images": source.sha256, "extractor": dict(extractors[name]().facts), "reader": _READER}
        key = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()[:32]
        folder = cache_folder(config.cache) / "references" / key
        with locked(folder, wait=True):
            gathered = Pass(folder, own, extractors, {"images": source.sha256}, config.scoring_batch_size)
            done, what = gathered.done, f"reference, {name}"
            if done < len(source):
                for batch in source.batches(done, images_per_call(config.scoring_batch_size), what):
                    missing = [number for number, image in enumerate(batch) if image is None]
                    if missing:
                        raise InputError(
                            f"reference: image {done + missing[0] + 1} of {what} can't be decoded; replace it"
                        )
                    gathered.add(done, batch)
                    done += len(batch)
                gathered.commit()
            found |= gathered.read()
    facts = {"name": config.reference, "images": len(source), "size": source.size and list(source.size)}
    return Reference(found, source.subjects, facts | {"sha256": source.sha256, "prompts": prompts})


def _from_file(
    path: Path, wanting: Sequence[str], needs: Collection[Need], extractors: Mapping[str, Callable[[], Extracts]]
) -> Reference:
    more = [name for name in wanting if METRICS[name].reference.kept]  # type: ignore[union-attr]
    if more:
        raise InputError(f"reference: {path}: statistics, but {more[0]} needs the images; give their folder")
    if len(needs) > 1:
        names = ", ".join(wanting)
        raise InputError(f"reference: {path} holds statistics of one extractor; {names} need {len(needs)}: score apart")
    (need,) = needs
    facts = extractors[need.extractor]().facts
    wanted = {
        "extractor": need.extractor,
        "resize": facts["resize"],
        "weights_sha256": facts["sha256"],
        "dtype": facts["dtype"],
    }
    statistics = read_statistics(path, facts["width"], wanted)
    images = statistics.facts.get("images")
    if images is not None:
        whole_number(str(path), "images", images, FEWEST)
    normal = make_normal(statistics.mean, statistics.covariance, images)
    with path.open("rb") as file:
        sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    size = statistics.facts.get("size")
    own = {"name": str(path), "images": images, "size": [size, size] if isinstance(size, int) else None}
    return Reference({need: normal}, None, own | {"sha256": sha256, "prompts": _prompts(statistics.facts)})
