"""Scoring as one call: a folder of images with captions in, `scores.json` out."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from bksdm_jax.base.errors import InputError, whole_number
from bksdm_jax.base.files import make_folder, write_json
from bksdm_jax.base.progress import Progress
from bksdm_jax.data.image_folder import FileExample, load_image, read_image_folder
from bksdm_jax.metrics.attributes import attribute_scores, unreadable_share
from bksdm_jax.metrics.bootstrap import bootstrap
from bksdm_jax.metrics.clip_features import clip_cosines, clip_features
from bksdm_jax.metrics.frechet import Normal, fit_normal, frechet_distance
from bksdm_jax.pipelines.clip_folder import LoadedCLIP, load_clip
from bksdm_jax.pipelines.embedded import clip_folder
from bksdm_jax.shapes.reader import read_scene
from bksdm_jax.shapes.render import PIXELS
from bksdm_jax.shapes.scenes import Scene, parse_caption
from bksdm_jax.shapes.world import example

_FEWEST = 2  # images that have a spread


@dataclasses.dataclass(frozen=True)
class ScoreConfig:
    """What is scored.

    Attributes:
        images: folder with `metadata.csv` (`file_name,text`), as `launch.sample` writes it.
        reference: folder of real images with such a table; empty: held-out pictures of the shapes world, rendered.
        reference_count: how many of these.
        batch_size: images per program call.
    """

    images: str
    reference: str = ""
    reference_count: int = 1000
    batch_size: int = 64


@dataclasses.dataclass(frozen=True)
class Judge:
    """What images are held to: the shapes CLIP, and its view of real pictures."""

    clip: LoadedCLIP
    real: Normal
    real_images: int
    batch_size: int


def make_judge(reference: str = "", reference_count: int = 1000, batch_size: int = 64) -> Judge:
    """Loads the shapes CLIP and shows it the real pictures; arguments as in `ScoreConfig`.

    Raises:
        InputError: a setting, folder, table or image can't be used.
    """
    whole_number("config", "reference_count", reference_count, _FEWEST)
    whole_number("config", "batch_size", batch_size)
    clip = load_clip(clip_folder())
    if reference:
        pictures = _pictures(_enough(reference))
    else:
        pictures = np.stack([example("heldout", index)[0] for index in range(reference_count)])
    return Judge(clip, fit_normal(clip_features(clip, pictures, batch_size)), len(pictures), batch_size)


def score(config: ScoreConfig, workdir: Path) -> dict[str, Any]:
    """Scores images of the shapes world and writes `scores.json`.

    Returns:
        what was written, see `score_folder`.

    Raises:
        InputError: a setting, folder, table, image or caption can't be used; nothing is written then.
    """
    _captions(config.images, _enough(config.images))  # told before anything slow
    judge = make_judge(config.reference, config.reference_count, config.batch_size)
    return score_folder(config.images, judge, workdir)


def score_folder(images: str, judge: Judge, workdir: Path) -> dict[str, Any]:
    """Scores a folder of images and writes `scores.json` in `workdir`.

    Returns:
        `images` (their number), `attribute_accuracy` (by group, each with its interval, chance and number of facts),
        `unreadable`, `clip_score_shapes` (mean cosine of image and caption), `fd_clip_shapes` (Frechet distance of the
        image tower's states to those of `reference_images` real pictures).

    Raises:
        InputError: the folder, its table, an image or a caption can't be used; nothing is written then.
    """
    examples = _enough(images)
    asked, pictures = _captions(images, examples), _pictures(examples)
    shown = [read_scene(picture) for picture in pictures]
    features = clip_features(judge.clip, pictures, judge.batch_size)
    cosines = clip_cosines(judge.clip, pictures, [entry.text for entry in examples], judge.batch_size)
    distance = bootstrap(lambda chosen: frechet_distance(features[chosen], judge.real), len(pictures), centred=True)
    cosine = bootstrap(lambda chosen: float(cosines[chosen].mean(dtype=np.float64)), len(pictures))
    attributes = {
        group: {**dataclasses.asdict(entry.accuracy), "chance": entry.chance, "facts": entry.facts}
        for group, entry in attribute_scores(asked, shown).items()
    }
    scores = {
        "images": len(pictures),
        "reference_images": judge.real_images,
        "attribute_accuracy": attributes,
        "unreadable": unreadable_share(shown),
        "clip_score_shapes": dataclasses.asdict(cosine),
        "fd_clip_shapes": dataclasses.asdict(distance),
    }
    write_json(make_folder(workdir) / "scores.json", scores)
    return scores


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


def _enough(folder: str) -> list[FileExample]:
    examples = read_image_folder(folder)
    if len(examples) < _FEWEST:
        raise InputError(f"{folder}: {len(examples)} image; scores need {_FEWEST} at least")
    return examples


def _captions(folder: str, examples: list[FileExample]) -> list[Scene]:
    scenes = []
    for number, entry in enumerate(examples, start=1):
        try:
            scenes.append(parse_caption(entry.text))
        except InputError as error:
            raise InputError(f"{folder}/metadata.csv: row {number}: {error}") from error
    return scenes


def _pictures(examples: list[FileExample]) -> np.ndarray:
    pictures = []
    with Progress("reading images", len(examples)) as progress:
        for entry in examples:
            pixels = load_image(entry.path)
            if pixels.shape[:2] != (PIXELS, PIXELS):
                found = f"{pixels.shape[1]} x {pixels.shape[0]}"
                raise InputError(f"{entry.path}: {found} pixels; the shapes world has {PIXELS} x {PIXELS}")
            pictures.append(pixels)
            progress.advance()
    return np.stack(pictures)
