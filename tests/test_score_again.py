"""Scores with what was changed in between, and with what can't be compared."""

import dataclasses
import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.locks import locked
from bksdm_jax.data.tables import write_table
from bksdm_jax.evaluation import scorer as scoring
from bksdm_jax.evaluation.images import open_images
from bksdm_jax.evaluation.score import score
from bksdm_jax.evaluation.squash import squash_all
from bksdm_jax.metrics.statistics_file import Statistics, write_statistics
from tests.test_score import Calls, calls, config, folders, write_images  # noqa: F401


def test_other_captions_are_scored_anew(calls: Calls, folders: Path) -> None:  # noqa: F811
    first = score(config(folders, ["clip_score"]), folders / "out")
    rows = [(f"{i:06d}.png", "a longer caption", "dog") for i in range(12)]
    write_table(folders / "images" / "metadata.csv", ("file_name", "text", "subject"), rows)
    again = score(config(folders, ["clip_score"]), folders / "out")
    assert again["scores"] != first["scores"]
    assert again == score(config(folders, ["clip_score"]), folders / "fresh")


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weights_sha256", "of another file"),
        ("dtype", "bfloat16"),
        ("images", "40504"),
        ("images", 1.5),
        ("images", True),
        ("images", 1),
    ],
)
def test_statistics_by_another_network_are_refused(
    key: str,
    value: object,
    calls: Calls,  # noqa: F811
    folders: Path,  # noqa: F811
) -> None:
    facts = {"extractor": "inception_clean", "resize": "clean", "weights_sha256": "inception_clean", "dtype": "float32"}
    file = folders / "real.npz"
    write_statistics(file, Statistics(np.zeros(21), np.eye(21), facts | {"images": 40}))
    score(config(folders, ["fid_clean"], reference=str(file)), folders / "right")
    write_statistics(file, Statistics(np.zeros(21), np.eye(21), facts | {key: value}))
    with pytest.raises(InputError, match=rf"real\.npz.*{key}"):
        score(config(folders, ["fid_clean"], reference=str(file)), folders / "out")


def test_two_programs_do_not_share_a_workdir(calls: Calls, folders: Path) -> None:  # noqa: F811
    """Both would add rows to one file."""
    own = config(folders, ["clip_score"])
    first = score(own, folders / "out")
    with locked(folders / "out"), pytest.raises(InputError, match=r"out.*in use"):
        score(own, folders / "out")
    assert score(own, folders / "out") == first


def test_a_cache_that_cannot_be_written_is_one_line(calls: Calls, folders: Path) -> None:  # noqa: F811
    own = config(folders, ["fid_clean"])
    score(own, folders / "a")
    (lock,) = (folders / "cache").rglob(".lock")
    lock.unlink()
    lock.mkdir()
    with pytest.raises(InputError, match=r"cache.*\.lock"):
        score(own, folders / "b")


@pytest.mark.parametrize("metric", ["fid_clean", "kid_clean"])
def test_features_that_are_not_finite_are_one_line(
    metric: str,
    calls: Calls,  # noqa: F811
    folders: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = calls.extractor("inception_clean")

    def program(*inputs: np.ndarray) -> dict[str, np.ndarray]:
        return {name: np.where(np.arange(len(rows))[:, None] == 3, np.nan, rows) for name, rows in found(*inputs)}

    def found(*inputs: np.ndarray) -> list[tuple[str, np.ndarray]]:
        return list(whole.program(*inputs).items())

    damaged = dataclasses.replace(whole, program=program)
    monkeypatch.setitem(scoring.EXTRACTORS, "inception_clean", lambda config: damaged)
    with pytest.raises(InputError, match="inception_clean: pool of image 4"):
        score(config(folders, [metric]), folders / "out")


def test_hidden_folders_are_ignored(folders: Path) -> None:  # noqa: F811
    write_images(folders / "real" / ".ipynb_checkpoints", 3)
    assert len(open_images(folders / "real", "reference")) == 20


def test_too_few_images_for_a_metric_are_told_before_the_pass(calls: Calls, folders: Path) -> None:  # noqa: F811
    for metric, more, least in (
        ("kid_clean", {"kid_subset_size": 13}, 13),
        ("inception_score", {}, 10),
        ("manifolds_dinov2", {}, 6),
    ):
        for path in sorted((folders / "images").glob("*.png"))[max(least - 1, 5) :]:
            path.unlink()
        (folders / "images" / "metadata.csv").unlink(missing_ok=True)
        with pytest.raises(InputError, match=rf"{metric}.*{least}"):
            score(config(folders, [metric], **more), folders / metric)
        assert not (folders / metric).exists()
    assert not calls.seen


def test_images_are_as_stored_whatever_their_orientation(tmp_path: Path) -> None:
    """As pytorch-fid, torch-fidelity and OpenCLIP read them."""
    exif, picture = Image.Exif(), Image.fromarray(np.random.default_rng(0).integers(0, 256, (8, 6, 3), np.uint8))
    exif[0x0112] = 6  # turned by a quarter
    for name in ("a.png", "b.png"):
        picture.save(tmp_path / name, exif=exif)
    images = open_images(tmp_path, "images")
    assert images.size == (6, 8)
    for found in next(images.batches(0, 2, "")):
        np.testing.assert_array_equal(found, np.asarray(picture))
    squash_all({"a.jpg": tmp_path / "a.png"}, tmp_path / "made", 4)
    wanted = io.BytesIO()
    picture.resize((4, 4)).save(wanted, "JPEG")
    assert (tmp_path / "made" / "a.jpg").read_bytes() == wanted.getvalue()


@pytest.mark.parametrize("batch_size", [1, 2])
def test_a_reference_of_several_sizes_is_refused_whatever_the_batches(
    batch_size: int,
    calls: Calls,  # noqa: F811
    folders: Path,  # noqa: F811
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Eight of one size, then eight of another: a call of eight devices sees one size."""
    whole = calls.extractor("inception_pytorch_fid")
    facts = {**whole.facts, "resize": "pytorch_fid"}
    same = dataclasses.replace(whole, prepare=lambda image: image, facts=facts)
    monkeypatch.setitem(scoring.EXTRACTORS, "inception_pytorch_fid", lambda config: same)
    for number, size in enumerate(((8, 8), (8, 9))):
        write_images(folders / "mixed" / f"{number}", 8, size=size)
    own = config(folders, ["fid_pytorch_fid"], reference=str(folders / "mixed"), scoring_batch_size=batch_size)
    with pytest.raises(InputError, match=r"reference.*mixed"):
        score(own, folders / "out")


def test_a_table_of_another_folder_does_not_caption_images(tmp_path: Path) -> None:
    for name in ("train", "val", "train_256"):
        write_images(tmp_path / name, 3)
    write_table(tmp_path / "metadata.csv", ("file_name", "text"), [(f"train/{i:06d}.png", f"{i}") for i in range(3)])
    for name in ("train", "train_256"):
        assert open_images(tmp_path / name, "images", named=True).captions == ("0", "1", "2")
    with pytest.raises(InputError, match="val"):
        open_images(tmp_path / "val", "images", named=True)
    given = str(tmp_path / "metadata.csv")
    assert open_images(tmp_path / "val", "images", captions=given, named=True).captions == ("0", "1", "2")
