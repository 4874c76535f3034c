"""Images with captions as people have them, small, for the tests of preparation."""

import csv
import io
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from bksdm_jax.data.prepare.config import PrepareConfig
from bksdm_jax.data.prepare.prepare import REJECTS
from bksdm_jax.data.sources import open_examples


def picture(seed: int = 0, size: tuple[int, int] = (20, 16), mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), np.uint8)
    return Image.fromarray(pixels).convert(mode)


def encoded(image: Image.Image, file_format: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, file_format, **options)
    return buffer.getvalue()


def folder_of(path: Path, rows: list[tuple[str, str]], files: dict[str, bytes]) -> Path:
    path.mkdir()
    for name, data in files.items():
        (path / name).parent.mkdir(parents=True, exist_ok=True)
        (path / name).write_bytes(data)
    with (path / "metadata.csv").open("w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([("file_name", "text"), *rows])
    return path


def many(path: Path, count: int) -> Path:
    return folder_of(
        path,
        [(f"{index:03d}.png", f"number {index}") for index in range(count)],
        {f"{index:03d}.png": encoded(picture(index)) for index in range(count)},
    )


def config(folder: Path, **changes: Any) -> PrepareConfig:
    return PrepareConfig(**({"source": str(folder), "workers": 1, "most_rejects": 1.0, "validation": 0.0} | changes))


def rejects(folder: Path) -> dict[str, str]:
    with (folder / REJECTS).open(newline="", encoding="utf-8") as file:
        return {row["name"]: row["reason"] for row in csv.DictReader(file)}


def names(folder: Path, split: str = "train") -> list[str]:
    return [example.name for example in open_examples(folder, split)]
