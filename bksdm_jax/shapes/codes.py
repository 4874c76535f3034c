"""Scenes as rows of small integers, for files of features."""

import numpy as np

from bksdm_jax.shapes.scenes import BACKGROUNDS, COLOURS, NEW_SHAPES, PLACES, SHAPES, SIZES, Scene, Thing

_WORDS = tuple(tuple(words) for words in ((*SHAPES, *NEW_SHAPES), COLOURS, SIZES, PLACES))
_BACKGROUNDS = tuple(BACKGROUNDS)
_NONE = 255  # what the reader can't tell
MOST_THINGS = 170
"""Objects of a scene at most: the reader's smallest region has 25 of 64 x 64 pixels."""
WIDTH = 2 + len(_WORDS) * MOST_THINGS


def encode(scene: Scene) -> np.ndarray:
    """Number of objects, background, and each object's shape, colour, size and place: uint8 [WIDTH]."""
    code = np.full(WIDTH, _NONE, np.uint8)
    code[:2] = len(scene.things), _number(scene.background, _BACKGROUNDS)
    for index, thing in enumerate(scene.things):
        facts = (thing.shape, thing.colour, thing.size, thing.place)
        start = 2 + index * len(_WORDS)
        code[start : start + len(_WORDS)] = [_number(word, words) for word, words in zip(facts, _WORDS, strict=True)]
    return code


def decode(code: np.ndarray) -> Scene:
    """The inverse of `encode`."""
    facts = code[2 : 2 + len(_WORDS) * int(code[0])].reshape(-1, len(_WORDS))
    things = tuple(Thing(*(_word(n, words) for n, words in zip(row, _WORDS, strict=True))) for row in facts)
    return Scene(things, _word(code[1], _BACKGROUNDS))


def _number(word: str | None, words: tuple[str, ...]) -> int:
    return _NONE if word is None else words.index(word)


def _word(number: int, words: tuple[str, ...]) -> str | None:
    return None if number == _NONE else words[number]
