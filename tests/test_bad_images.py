"""Images that can't be used, in data that a run reads directly: told before it, mended or skipped during it."""

import csv
import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
import pytest
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.checked_images import check_images, note_checked
from bksdm_jax.data.forms.pairs import Reject
from bksdm_jax.data.loader import LoaderConfig, training_batches
from bksdm_jax.data.pair_examples import PairExamples
from bksdm_jax.data.sources import open_examples
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.tasks.distill.inputs import open_inputs
from bksdm_jax.tasks.distill.task import distill
from bksdm_jax.training.config import SampleGridConfig
from tests import tiny

COUNT, STEP = 32, 3


@pytest.fixture(scope="module", autouse=True)
def one_device() -> Iterator[None]:
    """Programs for one device compile in a fifth of the time."""
    devices = jax.devices()[:1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(jax, "devices", lambda: devices)
        yield


@pytest.fixture(scope="module")
def config(pico_teacher: Path, tmp_path_factory: pytest.TempPathFactory) -> DistillConfig:
    """A run of four updates on a folder with 32 images, each seen once."""
    data = tmp_path_factory.mktemp("data")
    for index in range(COUNT):
        pixels = np.random.default_rng(index).integers(0, 256, (32, 40, 3), np.uint8)
        Image.fromarray(pixels).save(data / f"{index}.png")
        (data / f"{index}.txt").write_text(f"picture {index}")
    settings = {"resolution": 16, "batch_size": 8, "accumulation": 1, "dtype": "float32", "steps": 4}
    settings |= {"sheets": SampleGridConfig(steps=0), "log_every": 1}
    return DistillConfig(str(pico_teacher), tiny.PICO_STUDENT, str(data), **settings)


@pytest.fixture(scope="module")
def damaged(config: DistillConfig) -> Path:
    """An image that the third update sees."""

    def number(texts: list[str]) -> dict[str, np.ndarray]:
        return {"number": np.array([int(text.split()[-1]) for text in texts])}

    loader = LoaderConfig(16, 8, 1, flip=True, seed=config.seed)
    batches = training_batches(open_examples(Path(config.data)), number, loader, STEP - 1)
    return Path(config.data) / f"{int(next(batches)['captions']['number'][0, 0])}.png"


@pytest.fixture(scope="module")
def stopped(config: DistillConfig, damaged: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The workdir of a run that the damaged image stopped; its header is whole."""
    workdir, whole = tmp_path_factory.mktemp("runs") / "stopped", damaged.read_bytes()
    damaged.write_bytes(whole[: len(whole) // 2])
    refused(config, workdir, str(damaged), f"step {STEP - 1}")
    damaged.write_bytes(whole)
    return workdir


@pytest.fixture
def data(config: DistillConfig) -> Iterator[Path]:
    """The folder, which a test may change."""
    folder = Path(config.data)
    files = {path: path.read_bytes() for path in folder.iterdir()}
    yield folder
    for path, content in files.items():
        path.write_bytes(content)


def refused(config: DistillConfig, workdir: Path, *facts: str) -> None:
    with pytest.raises(InputError) as error:
        distill(config, workdir)
    assert "\n" not in str(error.value)
    for fact in facts:
        assert fact in str(error.value)


def test_bad_headers_are_told_before_anything_is_written(config: DistillConfig, data: Path, tmp_path: Path) -> None:
    for name in ("3.png", "5.png"):
        (data / name).write_bytes(b"")
    (data / "7.png").unlink()  # its caption stays
    Image.new("RGB", (8, 8)).save(data / "9.png")
    config = dataclasses.replace(config, least_side=16)
    facts = ("3 of 31 pairs", "2 like 3.png: the file is empty", "9.png: 8 x 8", "skip_unusable")
    refused(config, tmp_path / "run", *facts)
    assert not (tmp_path / "run").exists()


def test_a_damaged_image_is_skipped_on_request(
    config: DistillConfig, damaged: Path, stopped: Path, data: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(stopped, tmp_path / "run")
    damaged.write_bytes(damaged.read_bytes()[:1000])
    assert [path.name for path in (workdir / "checkpoints").iterdir()] == [str(STEP - 1)]
    made = distill(dataclasses.replace(config, skip_unusable=True), workdir)
    assert (made / "model_index.json").is_file()
    with (workdir / "skipped.csv").open(newline="") as file:
        assert [row["name"] for row in csv.DictReader(file)] == [damaged.name]


def test_what_changed_in_the_data_is_told_in_words(
    config: DistillConfig, stopped: Path, data: Path, tmp_path: Path
) -> None:
    workdir = shutil.copytree(stopped, tmp_path / "run")
    (data / "0.txt").write_text("another caption")
    refused(config, workdir, "data", "same number of pairs")
    (data / "0.png").unlink()
    refused(config, workdir, "data", "1 pair fewer")


@pytest.mark.slow
def test_once_it_is_mended_the_run_ends_as_an_undisturbed_one(
    config: DistillConfig, stopped: Path, tmp_path: Path
) -> None:
    again = distill(config, shutil.copytree(stopped, tmp_path / "run"))
    whole = distill(config, tmp_path / "whole")
    files = [path.relative_to(whole) for path in whole.rglob("*.safetensors")]
    assert files
    for file in files:
        assert (again / file).read_bytes() == (whole / file).read_bytes()


def test_images_are_checked_once_until_one_changes(
    config: DistillConfig, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def check() -> None:
        inputs = open_inputs(config)
        check_images(inputs.found, inputs.data, config.skip_unusable, tmp_path)
        note_checked(inputs.found, config.skip_unusable, tmp_path)

    check()
    monkeypatch.setattr(PairExamples, "unusable", lambda self: [Reject("0.png", "looked at")])
    check()
    (data / "0.png").write_bytes(b"")
    with pytest.raises(InputError, match=r"0\.png: looked at"):
        check()
