"""Scoring as one call: a folder of images with captions in, `scores.json` out."""

import dataclasses
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from bksdm_jax.base.errors import InputError, whole_number
from bksdm_jax.base.files import make_folder, write_json
from bksdm_jax.base.progress import Progress
from bksdm_jax.data.image_folder import FileExample, read_image_folder
from bksdm_jax.metrics.evaluate import ReferenceStatistics, evaluate, reference_statistics
from bksdm_jax.metrics.features import FEWEST, Batch
from bksdm_jax.metrics.shapes_world import SceneReader, heldout_batches, require_captions
from bksdm_jax.shapes.render import PIXELS


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """What to score.

    Attributes:
        images: folder with `metadata.csv` (`file_name,text`), as `launch.sample` writes it.
        reference: folder of real images with such a table; empty: rendered held-out pictures of the shapes world.
        reference_count: number of rendered pictures.
        batch_size: images per program call.
    """

    images: str
    reference: str = ""
    reference_count: int = 1000
    batch_size: int = 64


def score(config: ScoreConfig, workdir: Path) -> dict[str, Any]:
    """Scores images of the shapes world and writes `scores.json`.

    Returns:
        what was written, see `score_batches`.

    Raises:
        InputError: a setting, folder, table, image or caption can't be used; nothing is written then.
    """
    whole_number("config", "batch_size", config.batch_size)
    batches = _folder_batches(config.images, config.batch_size)  # rejects bad input before anything slow
    reference = shapes_reference(config.reference, config.reference_count, config.batch_size)
    return _write(score_batches(batches, reference, config.batch_size), workdir)


def shapes_reference(reference: str = "", reference_count: int = 1000, batch_size: int = 64) -> ReferenceStatistics:
    """Reference statistics of the shapes world; arguments as in `ScoreConfig`, errors as in `score`."""
    whole_number("config", "reference_count", reference_count, FEWEST)
    if reference:
        batches = _folder_batches(reference, batch_size, captions=False)
    else:
        batches = ((images, None) for images, _ in heldout_batches(reference_count, batch_size))
    return reference_statistics(batches, batch_size)


def score_folder(images: str, reference: ReferenceStatistics, workdir: Path, batch_size: int = 64) -> dict[str, Any]:
    """Scores a folder of images and writes `scores.json` in `workdir`; returns and raises as `score`."""
    return _write(score_batches(_folder_batches(images, batch_size), reference, batch_size), workdir)


def score_batches(batches: Iterable[Batch], reference: ReferenceStatistics, batch_size: int = 64) -> dict[str, Any]:
    """Scores images of the shapes world, from files or straight from a sampler.

    Args:
        batches: uint8 images [B, 64, 64, 3] with their captions; one batch is in memory at a time.
        reference: from `shapes_reference`.
        batch_size: images per program call.

    Returns:
        `images` (their number), `attribute_accuracy` (by group, each with its interval, chance and number of facts),
        `unreadable`, `clip_score_shapes` (mean cosine between image and caption), `fd_clip_shapes` (Frechet distance
        between the image tower's states and those of `reference_images` real pictures).

    Raises:
        InputError: fewer than two images, or one whose size or caption isn't of the shapes world.
    """
    reader = SceneReader()
    count, scores = evaluate(reader.watch(batches), reference, batch_size)
    return {
        "images": count,
        "reference_images": reference.images,
        **reader.scores(),
        **{name: dataclasses.asdict(entry) for name, entry in scores.items()},
    }


def score_table(scores: dict[str, Any]) -> str:
    """The scores as lines of text."""

    def line(name: str, entry: dict[str, float], digits: int, more: str = "") -> str:
        interval = "no interval"
        if entry["low"] is not None:
            interval = f"[{entry['low']:.{digits}f}, {entry['high']:.{digits}f}]"
        return f"{name:34} {entry['value']:>9.{digits}f}   {interval}{more}"

    lines = [f"{scores['images']} images; 95% bootstrap intervals", ""]
    for group, entry in scores["attribute_accuracy"].items():
        name = "attribute_accuracy" if group == "all" else f"  {group}"
        lines.append(line(name, entry, 4, f"   chance {entry['chance']:.4f}, {entry['facts']} facts"))
    lines.append(f"{'  not wholly readable':34} {scores['unreadable']:>9.4f}")
    lines.append(line("clip_score_shapes", scores["clip_score_shapes"], 4))
    against = f"   to {scores['reference_images']} real pictures"
    lines.append(line("fd_clip_shapes", scores["fd_clip_shapes"], 3, against))
    return "\n".join(lines)


def _write(scores: dict[str, Any], workdir: Path) -> dict[str, Any]:
    write_json(make_folder(workdir) / "scores.json", scores)
    return scores


def _folder_batches(folder: str, batch_size: int, captions: bool = True) -> Iterator[Batch]:
    """A folder's images, with or without captions; the table and all sizes are checked immediately."""
    examples = read_image_folder(folder)
    if len(examples) < FEWEST:
        raise InputError(f"{folder}: {len(examples)} image; scores need at least {FEWEST}")
    if captions:
        require_captions(folder, examples)
    for entry in examples:
        width, height = entry.size()
        if (width, height) != (PIXELS, PIXELS):
            raise InputError(f"{entry.path}: {width} x {height} pixels; the shapes world has {PIXELS} x {PIXELS}")
    return _load_batches(examples, batch_size, captions)


def _load_batches(examples: list[FileExample], batch_size: int, captions: bool) -> Iterator[Batch]:
    with Progress("reading images", len(examples)) as progress:
        for start in range(0, len(examples), batch_size):
            batch = examples[start : start + batch_size]
            images = np.stack([np.asarray(entry.image()) for entry in batch])
            yield images, [entry.text for entry in batch] if captions else None
            progress.advance(len(batch))
