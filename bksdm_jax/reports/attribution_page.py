"""The HTML page of attribution maps: each word's map over the image, teacher above students; a self-contained file."""

import dataclasses
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json
from bksdm_jax.base.paths import read_bytes
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.data.decode import MOST_BYTES, open_image, to_rgb
from bksdm_jax.reports.pictures import BUDGET, data_uri
from bksdm_jax.reports.template import write_template

FILE, PAGE = "attribution.json", "attribution.html"
SIDE = 160
"""Longest side in pixels of the pictures."""
_COLOURS = "viridis"
_SHARE = 0.6  # of the map in a picture
_QUALITY = 85
_MOST_WORDS = 40  # rows of the table of words


@dataclasses.dataclass(frozen=True)
class Row:
    """A model's pictures of a prompt: its image, then one for each word; data URIs."""

    label: str
    image: str
    words: list[str]
    likeness: list[Mapping[str, Any] | None]


@waiting("writing the report", QUIET)
def write_attribution_page(workdir: Path) -> Path:
    """Writes `attribution.html` from `attribution.json` and the models' `images/` and `maps/`, and returns its path.

    Prompts beyond what `pictures.BUDGET` allows are left out.

    Raises:
        InputError: a file can't be read or written.
    """
    found = read_json(workdir / FILE)
    labels = _labels(found["models"])
    prompts, used = [], 0
    for index, prompt in enumerate(found["prompts"]):
        rows = [_row(workdir, folder, label, index, prompt, found) for folder, label in labels.items()]
        used += sum(len(uri) for row in rows for uri in (row.image, *row.words))
        if used > BUDGET and prompts:
            break
        prompts.append({"text": prompt["text"], "words": prompt["words"], "rows": rows, "left": prompt["left_out"]})
    return write_template(
        workdir / PAGE,
        "attribution_report.html.j2",
        labels=labels,
        names={model["folder"]: model["name"] for model in found["models"]},
        mean=found["mean"],
        by_word=_common_words(found["by_word"]),
        prompts=prompts,
        count=len(found["prompts"]),
        settings=found["settings"],
        scale=data_uri(_png(_coloured(np.linspace(0, 1, 256)[None])), "image/png"),
    )


def _labels(models: Sequence[Mapping[str, str]]) -> dict[str, str]:
    """Folder -> label: teacher, and student or student 1, student 2, ..."""
    folders = [model["folder"] for model in models]
    return {
        folder: "student" if len(folders) == 2 and i else folder.replace("_", " ") for i, folder in enumerate(folders)
    }


def _common_words(by_word: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, dict[str, Any]]]:
    """The most frequent words with each student's likeness."""
    first = next(iter(by_word.values()), {})
    texts = sorted(first, key=lambda text: (-first[text]["count"], text))
    return [(text, {folder: own[text] for folder, own in by_word.items()}) for text in texts[:_MOST_WORDS]]


def _row(
    workdir: Path, folder: str, label: str, index: int, prompt: Mapping[str, Any], found: Mapping[str, Any]
) -> Row:
    path = workdir / folder / "images" / f"{index:06d}.png"
    try:
        image = to_rgb(open_image(read_bytes(path, MOST_BYTES)))
        maps = np.load(workdir / folder / "maps" / f"{index:06d}.npy", allow_pickle=False)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: it or its maps can't be read ({error}); delete both, they are made again") from error
    small = max(image.size) < SIDE
    size = tuple(max(1, round(length * SIDE / max(image.size))) for length in image.size)
    image = image.resize(size, Image.Resampling.NEAREST if small else Image.Resampling.LANCZOS)
    pictures = [_overlay(image, map_, found["settings"]["threshold"]) for map_ in maps]
    likeness = [word.get("likeness", {}).get(folder) for word in prompt["words"]]
    return Row(label, _jpeg(np.asarray(image)), [_jpeg(picture) for picture in pictures], likeness)


def _overlay(image: Image.Image, map_: np.ndarray, threshold: float) -> np.ndarray:
    """A map [h, w] in colours over the grey image, and a white line around what it marks; uint8 [H, W, 3].

    The colours go from the map's smallest to its largest value.
    """
    large = np.asarray(Image.fromarray(map_.astype(np.float32)).resize(image.size, Image.Resampling.BICUBIC))
    span = np.ptp(large)
    share = (large - large.min()) / span if span > 0 else np.zeros_like(large)
    grey = 48 + 0.6 * np.asarray(image.convert("L"), np.float32)[..., None]  # a white or black image would hide colours
    mixed = _SHARE * _coloured(share) + (1 - _SHARE) * grey
    marks = Image.fromarray(map_ >= threshold * map_.max()).resize(image.size, Image.Resampling.NEAREST)
    mixed[_edges(np.asarray(marks))] = 255
    return mixed.round().astype(np.uint8)


def _coloured(share: np.ndarray) -> np.ndarray:
    """Shares in [0, 1], [H, W] -> colours, float32 in [0, 255], [H, W, 3]."""
    return 255 * matplotlib.colormaps[_COLOURS](share)[..., :3].astype(np.float32)


def _edges(marks: np.ndarray) -> np.ndarray:
    """The marked pixels that have a neighbour that isn't, bool [H, W]."""
    around = np.pad(marks, 1, mode="edge")
    inner = around[:-2, 1:-1] & around[2:, 1:-1] & around[1:-1, :-2] & around[1:-1, 2:]
    return marks & ~inner


def _png(pixels: np.ndarray) -> bytes:
    return _file(pixels.round().astype(np.uint8), "PNG", optimize=True)


def _jpeg(pixels: np.ndarray) -> str:
    return data_uri(_file(pixels, "JPEG", quality=_QUALITY), "image/jpeg")


def _file(pixels: np.ndarray, kind: str, **options: Any) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, format=kind, **options)
    return file.getvalue()
