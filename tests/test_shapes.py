"""The shapes world: grammar, renderer and reader hold together, and the held-out scenes are held out."""

import collections
from pathlib import Path

import numpy as np
import pytest
import tensorflow_datasets as tfds
from scipy import ndimage

from bksdm_jax.base.errors import InputError
from bksdm_jax.data.sources import open_examples
from bksdm_jax.pipelines import embedded
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.shapes import scenes
from bksdm_jax.shapes.reader import read_scene
from bksdm_jax.shapes.render import render
from bksdm_jax.shapes.scenes import Scene, Thing, agreeing_facts, caption, draw_scene, held_out, parse_caption
from bksdm_jax.shapes.world import ShapesConfig, ShapesWorld, example


def shown(asked: Scene, picture: np.ndarray) -> list[tuple[str, bool]]:
    return agreeing_facts(asked, read_scene(picture))


@pytest.fixture(scope="module")
def pictures() -> list[tuple[Scene, np.ndarray]]:
    rng = np.random.default_rng(0)  # seeded, since the limits below are statistical
    drawn = [draw_scene(rng, 1 + i % 2, i % 3 == 0) for i in range(300)]
    return [(scene, render(scene, rng)) for scene in drawn]


def test_reader_is_right_on_rendered_pictures(pictures: list[tuple[Scene, np.ndarray]]) -> None:
    facts = [fact for pair in pictures for fact in shown(*pair)]
    for kind in scenes.KINDS:
        right = [ok for name, ok in facts if name == kind]
        assert np.mean(right) >= 0.99, kind


def test_reader_says_unreadable_rather_than_guess(pictures: list[tuple[Scene, np.ndarray]]) -> None:
    singles = [(scene.things[0], picture) for scene, picture in pictures if len(scene.things) == 1]
    told = collections.Counter()
    for sigma in (1.5, 3.0):
        for thing, picture in singles:
            blurred = ndimage.gaussian_filter(picture.astype(float), (sigma, sigma, 0)).astype(np.uint8)
            for seen in read_scene(blurred).things[:1]:
                word = seen.shape
                told[sigma, "unreadable" if word is None else word == thing.shape] += 1
    assert told[1.5, False] <= 0.06 * told[1.5, True], told
    assert told[3.0, "unreadable"] >= 0.5 * len(singles), told


def test_nothing_is_read_in_noise_or_an_empty_picture() -> None:
    assert read_scene(np.full((64, 64, 3), 128, np.uint8)) == Scene((), "grey")
    noise = np.random.default_rng().integers(0, 256, (64, 64, 3), np.uint8)
    for thing in read_scene(noise).things:
        assert thing.shape is None


def test_captions_parse_back() -> None:
    rng = np.random.default_rng()
    for _ in range(500):
        scene = draw_scene(rng, int(rng.integers(1, 3)), bool(rng.integers(2)))
        assert parse_caption(caption(scene)) == scene
    with pytest.raises(InputError, match="shapes world"):
        parse_caption("a photo of a cat")


def test_held_out_combinations_never_train_and_their_facts_do() -> None:
    trained, facts = set(), set()
    for index in range(1500):
        scene = parse_caption(example("train", index)[1])
        assert not held_out(scene)
        for thing in scene.things:
            trained.add((thing, scene.background))
            facts |= {thing.shape, thing.colour, thing.size, thing.place, scene.background}
    for index in range(300):
        scene = parse_caption(example("heldout", index)[1])
        assert held_out(scene)
        assert any((thing, scene.background) not in trained for thing in scene.things)
        for thing in scene.things:
            assert {thing.shape, thing.colour, thing.size, thing.place, scene.background} <= facts


def test_neighbours_differ_and_stay_in_training() -> None:
    rng = np.random.default_rng()
    for _ in range(200):
        scene = draw_scene(rng, int(rng.integers(1, 3)), False)
        other = scenes.neighbour(scene, rng)
        assert other != scene
        assert not held_out(other)
        assert len({thing.place for thing in other.things}) == len(scene.things)


def test_facts_are_matched_to_the_best_partner() -> None:
    red = Thing("circle", "red", "small", "at the top left")
    blue = Thing("square", "blue", "large", "at the bottom right")
    asked = Scene((red, blue), "white")
    assert all(ok for _, ok in agreeing_facts(asked, Scene((blue, red), "white")))
    missing = agreeing_facts(asked, Scene((blue,), "black"))
    assert sum(ok for _, ok in missing) == 4
    assert dict(missing)["count"] is False
    unread = agreeing_facts(Scene((red,), "white"), Scene((Thing(None, "red", None, None),), None))
    assert sorted(kind for kind, ok in unread if ok) == ["colour", "count"]


def test_tfds_set_reads_back_through_the_door(tmp_path) -> None:
    config = ShapesConfig(name="few", train=12, heldout=5)
    ShapesWorld(data_dir=tmp_path, config=config, file_format="array_record").download_and_prepare()
    folder = tmp_path / "shapes_world" / "few" / "1.0.0"
    wanted = {example("train", index)[1]: example("train", index)[0] for index in range(12)}
    examples = open_examples(folder)
    assert len(examples) == 12
    for index in range(12):
        np.testing.assert_array_equal(np.asarray(examples[index].image()), wanted[examples[index].texts[0]])
    assert len(open_examples(folder, "heldout")) == 5
    with pytest.raises(InputError, match="'heldout'"):
        open_examples(folder, "held_out")
    with pytest.raises(InputError, match=r"few/1\.0\.0"):
        open_examples(folder.parent.parent)
    assert tfds.builder_from_directory(folder).info.features["image"].shape == (64, 64, 3)


@pytest.mark.parametrize(
    ("features", "said"),
    [
        ({"image": tfds.features.Image(shape=(8, 8, 1))}, "'text'"),
        ({"image": tfds.features.Image(shape=(8, 8, 4)), "text": tfds.features.Text()}, "image .*1 or 3"),
        (
            {"image": tfds.features.Tensor(shape=(8, 8, 3), dtype=np.uint8), "text": tfds.features.Text()},
            "image .*1 or 3",
        ),
        ({"image": tfds.features.Image(shape=(8, 8, 1)), "text": np.int64}, "text "),
    ],
)
def test_other_tfds_sets_are_refused(tmp_path, features: dict, said: str) -> None:
    with pytest.raises(InputError, match=said):
        open_examples(write_set(tmp_path, features, []))


def test_grey_pictures_and_broken_records(tmp_path) -> None:
    features = {"image": tfds.features.Image(shape=(8, 8, 1)), "text": tfds.features.Text()}
    grey = np.arange(64, dtype=np.uint8).reshape(8, 8, 1)
    folder = write_set(tmp_path / "grey", features, [{"image": grey, "text": "grey"}])
    np.testing.assert_array_equal(np.asarray(open_examples(folder)[0].image()), np.repeat(grey, 3, axis=-1))
    broken = write_set(tmp_path / "broken", features, [{"image": grey, "text": b"\xff\xfe"}])
    with pytest.raises(InputError, match=r"'train'.*example 0"):
        open_examples(broken)[0]


def write_set(folder, features: dict, records: list[dict]):
    class Small(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version("1.0.0")

        def _info(self):
            return self.dataset_info_from_configs(features=tfds.features.FeaturesDict(features))

        def _split_generators(self, dl_manager):
            zeros = {name: np.zeros(f.shape, f.np_dtype) for name, f in self.info.features.items() if name != "text"}
            filler = zeros | ({"text": "a"} if isinstance(features.get("text"), tfds.features.Text) else {"text": 0})
            filler = {name: value for name, value in filler.items() if name in features}
            return {"train": iter(enumerate(records or [filler]))}

        def _generate_examples(self):
            yield from ()

    builder = Small(data_dir=folder, file_format="array_record")
    builder.download_and_prepare()
    return Path(builder.data_dir)


def test_damaged_and_missing_files_are_told(tmp_path, monkeypatch) -> None:
    (tmp_path / "teacher").mkdir()
    weights = tmp_path / "teacher" / "weights.msgpack"
    weights.write_bytes(b"weights")
    embedded.write_checksums(tmp_path)
    monkeypatch.setattr(embedded, "_FOLDER", tmp_path)
    assert embedded.teacher_folder() == tmp_path / "teacher"
    weights.write_bytes(b"weightz")
    with pytest.raises(InputError, match=r"weights\.msgpack"):
        find_model("shapes_teacher")
    weights.unlink()
    with pytest.raises(InputError, match=r"weights\.msgpack"):
        embedded.clip_folder()
