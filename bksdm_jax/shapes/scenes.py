"""Scenes of the shapes world, their captions and facts, and which scenes are held out.

The grammar of captions:

    caption := object ["and" object] "on a" BACKGROUND "background"
    object  := "a" SIZE COLOUR SHAPE PLACE
"""

import dataclasses
import hashlib
import itertools
import re

import numpy as np

from bksdm_jax.base.errors import InputError

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
COLOURS = {
    "red": (222, 44, 44),
    "green": (44, 160, 60),
    "blue": (44, 84, 222),
    "yellow": (240, 206, 40),
    "purple": (150, 50, 190),
    "cyan": (50, 206, 222),
}
"""Colours of objects, RGB in [0, 255]."""
SIZES = {"small": 7.5, "large": 12.5}
"""Half the extent of an object, pixels."""
PLACES = {
    "in the centre": (32.0, 32.0),
    "at the top left": (17.0, 17.0),
    "at the top right": (47.0, 17.0),
    "at the bottom left": (17.0, 47.0),
    "at the bottom right": (47.0, 47.0),
}
"""The centre of an object: x to the right, y down, pixels."""
BACKGROUNDS = {"white": (242, 242, 242), "grey": (128, 128, 128), "black": (16, 16, 16)}
"""Colours of backgrounds, RGB in [0, 255]."""
KINDS = ("shape", "colour", "size", "place", "background", "count")
"""The kinds of fact that a caption states; `count` is the number of objects."""
CORNERS = tuple(place for place in PLACES if place != "in the centre")  # where two objects never touch

_OBJECT = rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join(SHAPES)}) ({'|'.join(PLACES)})"
_CAPTION = re.compile(rf"{_OBJECT}(?: and {_OBJECT})? on a ({'|'.join(BACKGROUNDS)}) background")


@dataclasses.dataclass(frozen=True)
class Thing:
    """An object of a scene in the words of captions; None where the reader can't tell."""

    shape: str | None
    colour: str | None
    size: str | None
    place: str | None


@dataclasses.dataclass(frozen=True)
class Scene:
    """Objects (one or two in captions) on a background; None where the reader can't tell."""

    things: tuple[Thing, ...]
    background: str | None


def caption(scene: Scene) -> str:
    """The caption of a scene, with its objects in order."""
    things = " and ".join(f"a {t.size} {t.colour} {t.shape} {t.place}" for t in scene.things)
    return f"{things} on a {scene.background} background"


def parse_caption(text: str) -> Scene:
    """The scene that a caption describes: the inverse of `caption`.

    Raises:
        InputError: the caption doesn't follow the grammar.
    """
    found = _CAPTION.fullmatch(text.strip())
    if found is None:
        raise InputError(
            f"{text[:100]!r}: not a caption of the shapes world; expected one like "
            "'a small red circle at the top left on a white background'"
        )
    words = found.groups()
    groups = (words[0:4], words[4:8]) if words[4] else (words[0:4],)
    things = tuple(Thing(shape, colour, size, place) for size, colour, shape, place in groups)
    return Scene(things, words[8])


def held_out(scene: Scene) -> bool:
    """Whether a scene has a held-out combination of shape, colour, size, place and background.

    A tenth of these combinations is held out, chosen by a fixed hash; every single fact occurs in training.
    """
    combinations = (f"{t.shape} {t.colour} {t.size} {t.place} {scene.background}" for t in scene.things)
    return any(hashlib.sha256(text.encode()).digest()[0] % 10 == 0 for text in combinations)


def draw_scene(rng: np.random.Generator, objects: int, of_held_out: bool) -> Scene:
    """A random scene with 1 or 2 objects, uniform over those that are (not) held out; two are placed in corners."""

    def pick(names: tuple[str, ...]) -> str:
        return names[rng.integers(len(names))]

    while True:
        corners = [CORNERS[i] for i in rng.permutation(len(CORNERS))]
        places = corners[:2] if objects == 2 else [pick(tuple(PLACES))]
        things = tuple(Thing(pick(SHAPES), pick(tuple(COLOURS)), pick(tuple(SIZES)), place) for place in places)
        scene = Scene(things, pick(tuple(BACKGROUNDS)))
        if held_out(scene) == of_held_out:
            return scene


def words() -> list[str]:
    """Every word of captions, sorted."""
    phrases = [*SHAPES, *COLOURS, *SIZES, *PLACES, *BACKGROUNDS, "a", "and", "on", "background"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def neighbour(scene: Scene, rng: np.random.Generator) -> Scene:
    """A training scene that differs from `scene` in one fact, or by one fact swapped between its objects."""
    while True:
        things, background = list(scene.things), scene.background
        kind = ("shape", "colour", "size", "place", "background")[rng.integers(5)]
        if kind == "background":
            background = tuple(BACKGROUNDS)[rng.integers(len(BACKGROUNDS))]
        elif len(things) == 2 and rng.random() < 0.5:
            swapped = (getattr(things[1], kind), getattr(things[0], kind))
            things = [dataclasses.replace(t, **{kind: word}) for t, word in zip(things, swapped, strict=True)]
        else:
            names = {"shape": SHAPES, "colour": tuple(COLOURS), "size": tuple(SIZES)}
            names["place"] = tuple(PLACES) if len(things) == 1 else CORNERS
            i = rng.integers(len(things))
            things[i] = dataclasses.replace(things[i], **{kind: names[kind][rng.integers(len(names[kind]))]})
        changed = Scene(tuple(things), background)
        apart = len({thing.place for thing in things}) == len(things)
        if changed != scene and apart and not held_out(changed):
            return changed


def agreeing_facts(asked: Scene, shown: Scene) -> list[tuple[str, bool]]:
    """(kind, whether `shown` agrees) for every fact of `asked`.

    Objects are matched to maximise agreement. Facts of unmatched objects, and those that the reader can't tell (None),
    don't agree.
    """
    pairs = max(_matchings(asked.things, shown.things), key=lambda pairs: sum(map(_agreement, pairs)))
    facts = []
    for thing, partner in pairs:
        for kind in ("shape", "colour", "size", "place"):
            facts.append((kind, partner is not None and getattr(thing, kind) == getattr(partner, kind)))
    facts.append(("background", asked.background == shown.background))
    facts.append(("count", len(asked.things) == len(shown.things)))
    return facts


def _matchings(asked: tuple[Thing, ...], shown: tuple[Thing, ...]) -> list[tuple[tuple[Thing, Thing | None], ...]]:
    partners = [*shown, *[None] * len(asked)]
    return [tuple(zip(asked, order, strict=True)) for order in itertools.permutations(partners, len(asked))]


def _agreement(pair: tuple[Thing, Thing | None]) -> int:
    thing, partner = pair
    if partner is None:
        return 0
    return sum(getattr(thing, name) == getattr(partner, name) for name in ("shape", "colour", "size", "place"))
