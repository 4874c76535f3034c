"""Scoring as one call: a folder of images with captions in, `scores.json` out."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bksdm_jax.data.image_folder import Example, load_image, read_image_folder
from bksdm_jax.errors import InputError, whole_number
from bksdm_jax.files import write_json
from bksdm_jax.metrics.attributes import attribute_scores, unreadable_share
from bksdm_jax.metrics.bootstrap import bootstrap
from bksdm_jax.metrics.clip_features import clip_view
from bksdm_jax.metrics.frechet import fit_normal, frechet_distance
from bksdm_jax.progress import Progress
from bksdm_jax.shapes.embedded import clip_folder
from bksdm_jax.shapes.render import PIXELS
from bksdm_jax.shapes.world import example
from bksdm_jax.weights.clip_folder import LoadedCLIP, load_clip

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


def score(config: ScoreConfig, workdir: Path) -> dict[str, Any]:
    """Scores images of the shapes world and writes `scores.json`.

    Returns:
        what was written: `images`, `attribute_accuracy` (by group, each with its interval, chance and number of
        facts), `unreadable`, `clip_score_shapes` (mean cosine of image and caption), `fd_clip_shapes` (Frechet
        distance of the image tower's states to those of `reference_images` real pictures).

    Raises:
        InputError: a folder, table, image or caption can't be used; nothing is written then.
    """
    whole_number("config", "reference_count", config.reference_count, _FEWEST)
    whole_number("config", "batch_size", config.batch_size)
    examples = read_image_folder(config.images)
    if len(examples) < _FEWEST:
        raise InputError(f"{config.images}: {len(examples)} image; scores need {_FEWEST} at least")
    clip = load_clip(clip_folder())
    images, captions = _pictures(examples), [entry.text for entry in examples]
    real = _reference(config)
    scores = score_images(images, captions, clip_view(clip, real, batch_size=config.batch_size).features, clip, config)
    workdir.mkdir(parents=True, exist_ok=True)
    write_json(workdir / "scores.json", scores)
    return scores


def score_images(
    images: np.ndarray, captions: list[str], real: np.ndarray, clip: LoadedCLIP, config: ScoreConfig
) -> dict[str, Any]:
    """The scores of images [N, H, W, 3] with captions, beside the image tower's states of real ones [M, D]."""
    view = clip_view(clip, images, captions, config.batch_size)
    normal = fit_normal(real)
    distance = bootstrap(lambda chosen: frechet_distance(view.features[chosen], normal), len(images), centred=True)
    cosine = bootstrap(lambda chosen: float(view.cosines[chosen].mean(dtype=np.float64)), len(images))
    attributes = {
        group: {**dataclasses.asdict(entry.accuracy), "chance": entry.chance, "facts": entry.facts}
        for group, entry in attribute_scores(captions, images).items()
    }
    return {
        "images": len(images),
        "reference_images": len(real),
        "attribute_accuracy": attributes,
        "unreadable": unreadable_share(images),
        "clip_score_shapes": dataclasses.asdict(cosine),
        "fd_clip_shapes": dataclasses.asdict(distance),
    }


def score_table(scores: dict[str, Any]) -> str:
    """The scores as lines of text."""

    def line(name: str, entry: dict[str, float], digits: int, more: str = "") -> str:
        low, high = (f"{entry[key]:.{digits}f}" for key in ("low", "high"))
        return f"{name:34} {entry['value']:>9.{digits}f}   [{low}, {high}]{more}"

    lines = [f"{scores['images']} images; 95% bootstrap intervals", ""]
    for group, entry in scores["attribute_accuracy"].items():
        name = "attribute_accuracy" if group == "all" else f"  {group}"
        lines.append(line(name, entry, 4, f"   chance {entry['chance']:.4f}, {entry['facts']} facts"))
    lines.append(f"{'  not wholly readable':34} {scores['unreadable']:>9.4f}")
    lines.append(line("clip_score_shapes", scores["clip_score_shapes"], 4))
    against = f"   to {scores['reference_images']} real pictures"
    lines.append(line("fd_clip_shapes", scores["fd_clip_shapes"], 3, against))
    return "\n".join(lines)


def _pictures(examples: list[Example]) -> np.ndarray:
    pictures = []
    with Progress("reading images", len(examples)) as progress:
        for entry in examples:
            pixels = load_image(entry.path, PIXELS)
            with Image.open(entry.path) as file:
                if file.size != (PIXELS, PIXELS):
                    found = f"{file.size[0]} x {file.size[1]}"
                    raise InputError(f"{entry.path}: {found} pixels; the shapes world has {PIXELS} x {PIXELS}")
            pictures.append(pixels)
            progress.advance()
    return np.stack(pictures)


def _reference(config: ScoreConfig) -> np.ndarray:
    if config.reference:
        return _pictures(read_image_folder(config.reference))
    return np.stack([example("heldout", index)[0] for index in range(config.reference_count)])
