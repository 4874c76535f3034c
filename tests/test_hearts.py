"""Hearts: they are drawn, asked for and read, and leave the shapes world of the teacher as it is."""

import itertools

import numpy as np
import pytest
import tensorflow_datasets as tfds

from bksdm_jax.data.sources import data_folder, open_examples
from bksdm_jax.metrics.attributes import attribute_score
from bksdm_jax.metrics.shapes_reader import ShapesReader
from bksdm_jax.shapes import hearts, scenes
from bksdm_jax.shapes.codes import decode, encode
from bksdm_jax.shapes.reader import candidates, read_scene
from bksdm_jax.shapes.render import outline, render
from bksdm_jax.shapes.scenes import Scene, Thing, agreeing_facts, caption, parse_caption, words
from bksdm_jax.shapes.world import example

HEART = Scene((Thing("heart", "red", "large", "at the top left"),), "white")
CIRCLE = Scene((Thing("circle", "red", "large", "at the top left"),), "white")
EVERY = candidates(HEART)


@pytest.fixture
def rng() -> np.random.Generator:
    return np.random.default_rng(0)


def test_a_heart_is_upright_symmetric_and_fills_its_box() -> None:
    points = np.asarray(outline("heart"))
    assert np.abs(points).max(axis=0) == pytest.approx([1, 0.9], abs=0.01)
    assert points.min(axis=0) == pytest.approx(-points.max(axis=0))
    mirrored = points * (-1, 1)
    assert all(np.hypot(*(points - point).T).min() < 1e-6 for point in mirrored)
    lowest, notch = points[points[:, 1].argmax()], points[np.abs(points[:, 0]) < 1e-6][:, 1].min()
    assert lowest[0] == pytest.approx(0, abs=1e-6)
    assert notch > points[:, 1].min() + 0.3


def test_hearts_are_read_right(rng: np.random.Generator) -> None:
    spots = itertools.cycle(itertools.product(scenes.PLACES, scenes.BACKGROUNDS))
    looks = itertools.product(scenes.SIZES, scenes.COLOURS, range(5))
    asked = [
        Scene((Thing("heart", colour, size, place),), background)
        for (size, colour, _), (place, background) in zip(looks, spots, strict=False)
    ]
    found = ShapesReader()([render(scene, rng) for scene in asked], [caption(scene) for scene in asked])
    assert attribute_score(found["scenes"]).value == 1
    assert {thing.shape for row in found["scenes"] for thing in decode(row[1]).things} == {"heart"}


def test_nothing_else_is_read_as_a_heart(rng: np.random.Generator) -> None:
    for shape, size, place in itertools.product(scenes.SHAPES, scenes.SIZES, scenes.PLACES):
        picture = render(Scene((Thing(shape, "blue", size, place),), "grey"), rng)
        assert [thing.shape for thing in read_scene(picture, EVERY).things] == [shape]


def test_hearts_are_looked_for_only_where_the_caption_has_one(rng: np.random.Generator) -> None:
    heart, circle = render(HEART, rng), render(CIRCLE, rng)
    both = Scene((*CIRCLE.things, *HEART.things), "white")
    texts = [caption(scene) for scene in (HEART, CIRCLE, HEART, both)]
    found = ShapesReader()([heart, heart, circle, heart], texts)["scenes"][:, 1]
    assert [decode(row).things[0].shape for row in found] == ["heart", None, "circle", "heart"]
    wrong = [kind for kind, right in agreeing_facts(HEART, decode(found[2])) if not right]
    assert wrong == ["shape"]


def test_captions_of_hearts_parse_back() -> None:
    both = Scene((*HEART.things, Thing("star", "blue", "small", "at the bottom right")), "grey")
    for scene in (HEART, both):
        assert parse_caption(caption(scene)) == decode(encode(scene)) == scene


def test_the_teachers_world_has_no_hearts() -> None:
    assert not {"heart", *scenes.NEW_SHAPES} & {*scenes.SHAPES, *words()}
    texts = [example(split, index)[1] for split in ("train", "heldout") for index in range(60)]
    assert not any("heart" in text for text in texts)
    star = Scene((Thing("star", "cyan", "large", "at the bottom right"),), "black")
    assert encode(star)[:6].tolist() == [1, 2, 5, 5, 1, 4]  # as in features on disk


def test_the_set_of_hearts(tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(tfds.core.constants, "DATA_DIR", str(tmp_path))
    folder = data_folder("shapes_world/hearts")
    spots = []
    for split, count in (("train", 5), ("heldout", 10)):
        examples = {one.texts[0]: np.asarray(one.image()) for one in open_examples(folder, split)}
        pairs = [hearts.example(split, index) for index in range(count)]
        assert sorted(examples) == sorted(hearts.prompts(split)) == sorted(text for _, text in pairs)
        for picture, text in pairs:
            np.testing.assert_array_equal(examples[text], picture)
            scene = parse_caption(text)
            assert read_scene(picture, EVERY) == scene
            (thing,) = scene.things
            assert (thing.size, thing.colour, thing.shape) == ("large", "red", "heart")
            spots.append((thing.place, scene.background))
    assert sorted(spots) == sorted(itertools.product(scenes.PLACES, scenes.BACKGROUNDS))
    assert [{*column} for column in zip(*spots[:5], strict=True)] == [{*scenes.PLACES}, {*scenes.BACKGROUNDS}]


def test_prompts_of_other_hearts() -> None:
    others = [parse_caption(text) for text in hearts.prompts("others")]
    assert len(others) == len(set(others)) == 40
    things = [thing for scene in others for thing in scene.things]
    assert {thing.shape for thing in things} == {"heart"}
    looks = {*itertools.product(scenes.SIZES, scenes.COLOURS)} - {("large", "red")}
    assert {(thing.size, thing.colour) for thing in things} == looks
    assert len({(scene.things[0].place, scene.background) for scene in others}) == 15
