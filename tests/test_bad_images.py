"""Images that can't be used, in data that a run reads directly: told before it, mended or skipped during it."""

import csv
import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.loader import LoaderConfig, training_batches
from bksdm_jax.data.sources import open_examples
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.tasks.distill.task import distill
from bksdm_jax.training.config import SampleGridConfig
from tests import tiny

COUNT, STEP = 32, 3


@pytest.fixture
def config(micro_teacher: Path, tmp_path: Path) -> DistillConfig:
    """A run of four updates on a folder with 32 images, each seen once."""
    data = tmp_path / "data"
    data.mkdir()
    for index in range(COUNT):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 40, 3), np.uint8)
        Image.fromarray(pixels).save(data / f"{index}.png")
        (data / f"{index}.txt").write_text(f"picture {index}")
    settings = {"resolution": 16, "batch_size": 8, "accumulation": 1, "dtype": "float32", "steps": 4}
    settings |= {"sheets": SampleGridConfig(steps=0), "log_every": 1}
    return DistillConfig(str(micro_teacher), tiny.MICRO_STUDENT, str(data), **settings)


def of_step(config: DistillConfig, step: int) -> Path:
    """An image that the update sees."""

    def number(texts: list[str]) -> dict[str, np.ndarray]:
        return {"number": np.array([int(text.split()[-1]) for text in texts])}

    loader = LoaderConfig(16, 8, 1, flip=True, seed=config.seed)
    batches = training_batches(open_examples(Path(config.data)), number, loader, step - 1)
    return Path(config.data) / f"{int(next(batches)['captions']['number'][0, 0])}.png"


def refused(config: DistillConfig, workdir: Path, *facts: str) -> None:
    with pytest.raises(InputError) as error:
        distill(config, workdir)
    assert "\n" not in str(error.value)
    for fact in facts:
        assert fact in str(error.value)


def test_bad_headers_are_told_before_anything_is_written(config: DistillConfig, tmp_path: Path) -> None:
    for name in ("3.png", "5.png"):
        (Path(config.data) / name).write_bytes(b"")
    (Path(config.data) / "7.png").unlink()  # its caption stays
    Image.new("RGB", (8, 8)).save(Path(config.data) / "9.png")
    config = dataclasses.replace(config, least_side=16)
    refused(
        config, tmp_path / "run", "3 of 31 pairs", "2 like 3.png: the file is empty", "9.png: 8 x 8", "skip_unusable"
    )
    assert not (tmp_path / "run").exists()


def test_a_damaged_image_is_mended_or_skipped(config: DistillConfig, tmp_path: Path) -> None:
    path, workdir = of_step(config, STEP), tmp_path / "run"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])  # its header is whole
    refused(config, workdir, str(path), f"step {STEP - 1}")
    assert sorted(path.name for path in (workdir / "checkpoints").iterdir()) == [str(STEP - 1)]
    refused(config, workdir, str(path))
    made = distill(dataclasses.replace(config, skip_unusable=True), workdir)
    assert (made / "model_index.json").is_file()
    with (workdir / "skipped.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == [path.name]


def test_what_changed_in_the_data_is_told_in_words(config: DistillConfig, tmp_path: Path) -> None:
    path, workdir = of_step(config, STEP), tmp_path / "run"
    whole = path.read_bytes()
    path.write_bytes(whole[: len(whole) // 2])
    refused(config, workdir, str(path))
    text = Path(config.data) / "0.txt"
    (Path(config.data) / "0.png").rename(tmp_path / "0.png")
    refused(config, workdir, "data", "1 pair fewer")
    (tmp_path / "0.png").rename(Path(config.data) / "0.png")
    text.write_text("another caption")
    refused(config, workdir, "data", "same number of pairs")
    text.write_text("picture 0")
    path.write_bytes(whole)  # mended: the run goes on
    assert distill(config, workdir) == workdir / "model"
