"""One pass over images: features on disk, continued after a stop, whatever the batches; attributes of shapes."""

import tracemalloc
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.metrics.attributes import attribute_score, attribute_scores, unreadable_share
from bksdm_jax.metrics.extractor import Extractor, exact
from bksdm_jax.metrics.gather import Pass
from bksdm_jax.metrics.shapes_reader import ShapesReader
from bksdm_jax.metrics.store import FeatureStore, Need
from bksdm_jax.metrics.table import METRICS
from bksdm_jax.shapes.codes import decode, encode
from bksdm_jax.shapes.reader import read_scene
from bksdm_jax.shapes.scenes import parse_caption
from bksdm_jax.shapes.world import example

KEPT, SUMMED = Need("colours", "means", kept=True), Need("colours", "means")


def colours(size: int = 8) -> Extractor:
    """Mean colours of images of one size."""

    def program(params: np.ndarray, images: np.ndarray, text: None) -> dict[str, np.ndarray]:
        return {"means": (np.asarray(images) / np.float32(255)).mean(axis=(1, 2)) * np.asarray(params)}

    return Extractor(lambda image: exact(image, size), np.float32(2), program, facts={"sha256": "0"})


def pictures(count: int, size: int = 8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, size, size, 3), np.uint8)


def begin(folder: Path, record: Mapping[str, Any] | None = None) -> Pass:
    return Pass(folder, [KEPT, SUMMED], {"colours": colours}, record or {"images": "a"}, 4)


def feed(one: Pass, images: Sequence[np.ndarray | None], size: int, until: int | None = None) -> None:
    for start in range(one.done, until or len(images), size):
        one.add(start, images[start : start + size])


def test_a_pass_gives_the_same_whatever_the_batches(tmp_path: Path) -> None:
    images = pictures(21)
    first, second = begin(tmp_path / "a"), begin(tmp_path / "b")
    feed(first, images, 21)
    feed(second, images, 5)
    wanted = (images / 255).mean(axis=(1, 2)) * 2
    for one in (first, second):
        found = one.read()
        assert isinstance(found[KEPT], np.memmap)
        np.testing.assert_allclose(found[KEPT], wanted, rtol=1e-6)
        np.testing.assert_allclose(found[SUMMED].covariance(), np.cov(wanted, rowvar=False), rtol=1e-5)
        assert found[SUMMED].count == 21


def test_an_interrupted_pass_continues(tmp_path: Path) -> None:
    images = pictures(20)
    whole = begin(tmp_path / "whole")
    feed(whole, images, 4)
    stopped = begin(tmp_path / "stopped")
    feed(stopped, images, 4, until=8)
    stopped.commit()
    feed(stopped, images, 4, until=16)  # lost with the process
    again = begin(tmp_path / "stopped")
    assert again.done == 8
    feed(again, images, 6)
    np.testing.assert_array_equal(again.read()[KEPT], whole.read()[KEPT])
    np.testing.assert_allclose(again.read()[SUMMED].scatter, whole.read()[SUMMED].scatter, rtol=1e-9)
    again.commit()
    assert begin(tmp_path / "stopped").done == 20
    assert begin(tmp_path / "stopped", {"images": "b"}).done == 0  # others


def test_images_that_cannot_be_read_are_passed_over(tmp_path: Path) -> None:
    images: list[np.ndarray | None] = list(pictures(10))
    images[3] = images[8] = None
    one = begin(tmp_path)
    feed(one, images, 4)
    one.commit()
    assert (one.done, one.skipped) == (10, [3, 8])
    assert len(one.read()[KEPT]) == one.read()[SUMMED].count == 8
    assert begin(tmp_path).skipped == [3, 8]


def test_extractors_behind_others_see_what_they_lack(tmp_path: Path) -> None:
    images, other = pictures(8), Need("more", "means", kept=True)
    one = begin(tmp_path)
    feed(one, images, 4)
    one.commit()
    both = Pass(tmp_path, [KEPT, SUMMED, other], {"colours": colours, "more": colours}, {"images": "a"}, 4)
    assert both.done == 0
    feed(both, images, 4)
    assert both.read()[SUMMED].count == 8
    np.testing.assert_array_equal(both.read()[other], both.read()[KEPT])


def test_features_behind_others_are_completed(tmp_path: Path) -> None:
    images: list[np.ndarray | None] = list(pictures(10))
    images[2] = images[5] = images[9] = None
    kept = Pass(tmp_path, [KEPT], {"colours": colours}, {"images": "a"}, 4)
    feed(kept, images, 4, until=7)
    kept.commit()
    both = begin(tmp_path)
    assert both.done == 0
    feed(both, images, 6)
    assert both.read()[SUMMED].count == len(both.read()[KEPT]) == 7
    np.testing.assert_allclose(both.read()[KEPT].mean(axis=0), both.read()[SUMMED].mean, rtol=1e-6)
    assert (both.done, both.skipped) == (10, [2, 5, 9])


def test_rows_after_unreadable_images_are_dropped_if_not_committed(tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, True, {})
    store.add(np.zeros((0,)), [0, 1])
    store.commit()
    store.add(np.full((2, 3), 7, np.float32))
    again = FeatureStore(tmp_path, True, {})
    assert again.done == 2
    again.add(np.full((2, 3), 9, np.float32))
    np.testing.assert_array_equal(again.read(), np.full((2, 3), 9))


@pytest.mark.parametrize("key", ["skipped", "layout", "done"])
def test_progress_without_a_key_begins_anew(key: str, tmp_path: Path) -> None:
    store = FeatureStore(tmp_path, True, {})
    store.add(np.zeros((2, 3), np.float32))
    store.commit()
    progress = read_json(tmp_path / "progress.json")
    del progress[key]
    write_json(tmp_path / "progress.json", progress)
    assert FeatureStore(tmp_path, True, {}).done == 0


def test_a_shortened_file_of_features_is_told(tmp_path: Path) -> None:
    one = begin(tmp_path)
    feed(one, pictures(8), 4)
    one.commit()
    path = tmp_path / "colours" / "means" / "rows.bin"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(InputError, match=r"means.rows\.bin"):
        begin(tmp_path)


def test_images_of_other_sizes_are_told(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"9 x 9 .*8 x 8"):
        begin(tmp_path).add(0, pictures(4, size=9))


def test_memory_does_not_grow_with_the_images(tmp_path: Path) -> None:
    """Above the level after the first batch; features of 6,000 images are 0.3 MB, the images 74 MB."""
    images = pictures(60, size=64)

    def peak(count: int) -> int:
        one = Pass(tmp_path / str(count), [KEPT, SUMMED], {"colours": lambda: colours(64)}, {}, 60)
        for start in range(0, count, len(images)):
            if start == len(images):
                tracemalloc.start()
            one.add(start, images)
        one.commit()
        _, most = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        return most

    assert peak(6_000) == pytest.approx(peak(600), rel=0.1)


def test_every_metric_names_features_that_its_scores_find() -> None:
    for name, metric in METRICS.items():
        assert metric.images.kept, name
        assert metric.needs(intervals=False).kept != metric.summable, name
        assert metric.better in ("lower", "higher"), name


def test_scenes_survive_their_codes() -> None:
    for index in range(40):
        picture, text = example("heldout", index)
        for scene in (parse_caption(text), read_scene(picture), read_scene(np.zeros((64, 64, 3), np.uint8))):
            assert decode(encode(scene)) == scene
    noise = read_scene(np.random.default_rng(0).integers(0, 256, (64, 64, 3), np.uint8))
    assert decode(encode(noise)) == noise


def test_the_reader_is_an_extractor() -> None:
    pairs = [example("heldout", index) for index in range(30)]
    images, texts = zip(*pairs, strict=True)
    found = attribute_score(ShapesReader()(images, texts)["scenes"])
    groups = attribute_scores([parse_caption(text) for text in texts], [read_scene(image) for image in images])
    assert (found.value, found.chance, found.facts) == (
        groups["all"].value,
        groups["all"].chance,
        groups["all"].facts,
    )
    assert found.groups == groups
    with pytest.raises(InputError, match="a cat"):
        ShapesReader()(images[:1], ["a cat"])


def test_attribute_accuracy_of_right_wrong_and_empty_pictures() -> None:
    pairs = [example("heldout", index) for index in range(60)]
    captions, pictures = [parse_caption(text) for _, text in pairs], [read_scene(picture) for picture, _ in pairs]
    right = attribute_scores(captions, pictures)
    assert right["all"].value >= 0.99
    others = attribute_scores(captions, pictures[7:] + pictures[:7])  # each with another's picture: chance
    assert others["all"].value == pytest.approx(right["all"].chance, abs=0.1)
    assert right["background"].chance == pytest.approx(1 / 3, abs=0.1)
    nothing = read_scene(np.full((64, 64, 3), 242, np.uint8))
    empty = attribute_scores(captions, [nothing] * 60)
    assert empty["shape"].value == empty["count"].value == 0
    assert right["one object"].facts + right["two objects"].facts == right["all"].facts
    assert unreadable_share(pictures) <= 0.05
    assert unreadable_share([nothing]) == 1
