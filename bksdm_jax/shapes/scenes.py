"""Scenes of the shapes world, their captions and facts, and which scenes are held out.

The grammar of captions:

    caption := object ["and" object] "on a" BACKGROUND "background"
    object  := "a" SIZE COLOUR SHAPE PLACE
"""

import dataclasses
import hashlib
import itertools
import re
from collections.abc import Iterable, Sequence

import numpy as np

from bksdm_jax.base.errors import InputError

SHAPES = ("circle", "square", "triangle", "diamond", "cross", "star")
NEW_SHAPES = ("heart",)
"""Shapes that the bundled teacher has never seen; captions may ask for them."""
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
_OF_THINGS = ("shape", "colour", "size", "place")
KINDS = (*_OF_THINGS, "background", "count")
"""The kinds of fact that a caption states; `count` is the number of objects."""
CORNERS = tuple(place for place in PLACES if place != "in the centre")  # where two objects never touch

_OBJECT = rf"a ({'|'.join(SIZES)}) ({'|'.join(COLOURS)}) ({'|'.join((*SHAPES, *NEW_SHAPES))}) ({'|'.join(PLACES)})"
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
    """The scene that a caption describes: the inverse of `caption`; raises `InputError` if it breaks the grammar."""
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
    while True:
        corners = [CORNERS[i] for i in rng.permutation(len(CORNERS))]
        places = corners[:2] if objects == 2 else [_pick(rng, PLACES)]
        things = tuple(Thing(_pick(rng, SHAPES), _pick(rng, COLOURS), _pick(rng, SIZES), place) for place in places)
        scene = Scene(things, _pick(rng, BACKGROUNDS))
        if held_out(scene) == of_held_out:
            return scene


def _pick(rng: np.random.Generator, names: Iterable[str]) -> str:
    names = tuple(names)
    return names[rng.integers(len(names))]


def words() -> list[str]:
    """Every word of captions without new shapes, sorted."""
    phrases = [*SHAPES, *COLOURS, *SIZES, *PLACES, *BACKGROUNDS, "a", "and", "on", "background"]
    return sorted({word for phrase in phrases for word in phrase.split()})


def neighbour(scene: Scene, rng: np.random.Generator) -> Scene:
    """A training scene that differs from `scene` in one fact, or by one fact swapped between its objects."""
    while True:
        things, background = list(scene.things), scene.background
        kind = KINDS[rng.integers(5)]  # all but `count`
        if kind == "background":
            background = _pick(rng, BACKGROUNDS)
        elif len(things) == 2 and rng.random() < 0.5:
            swapped = (getattr(things[1], kind), getattr(things[0], kind))
            things = [dataclasses.replace(t, **{kind: word}) for t, word in zip(things, swapped, strict=True)]
        else:
            places = PLACES if len(things) == 1 else CORNERS
            names = {"shape": SHAPES, "colour": COLOURS, "size": SIZES, "place": places}[kind]
            i = rng.integers(len(things))
            things[i] = dataclasses.replace(things[i], **{kind: _pick(rng, names)})
        changed = Scene(tuple(things), background)
        apart = len({thing.place for thing in things}) == len(things)
        if changed != scene and apart and not held_out(changed):
            return changed


def agreeing_facts(asked: Scene, shown: Scene) -> list[tuple[str, bool]]:
    """(kind, whether `shown` agrees) for every fact of `asked`.

    Objects are matched to maximise agreement. Facts of unmatched objects, and those that the reader can't tell (None),
    don't agree.
    """
    partners = [*shown.things, *[None] * len(asked.things)]
    matchings = (_thing_facts(asked.things, order) for order in itertools.permutations(partners, len(asked.things)))
    facts = max(matchings, key=lambda facts: sum(agrees for _, agrees in facts))
    facts.append(("background", asked.background == shown.background))
    facts.append(("count", len(asked.things) == len(shown.things)))
    return facts


def _thing_facts(asked: Sequence[Thing], shown: Sequence[Thing | None]) -> list[tuple[str, bool]]:
    return [
        (kind, partner is not None and getattr(thing, kind) == getattr(partner, kind))
        for thing, partner in zip(asked, shown, strict=True)
        for kind in _OF_THINGS
    ]
