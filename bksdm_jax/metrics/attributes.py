"""Attribute accuracy: which share of the facts that a caption of the shapes world states does its image show?"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from bksdm_jax.metrics.bootstrap import Score, bootstrap
from bksdm_jax.shapes.scenes import KINDS, Scene, agreeing_facts

_SHIFTS = 20  # other captions that each image is held to for the level of chance


@dataclasses.dataclass(frozen=True)
class AttributeScore:
    """A share of facts shown, what chance would give, and how many facts were asked for."""

    accuracy: Score
    chance: float
    facts: int


def attribute_scores(asked: Sequence[Scene], shown: Sequence[Scene]) -> dict[str, AttributeScore]:
    """The accuracy of all facts (`all`), by kind of fact, and by the number of objects (`one object`, `two objects`).

    A fact that the reader can't tell counts as not shown. Chance is the accuracy that correct pictures of other
    captions of the same list would have.

    Args:
        asked: what the captions state (`parse_caption`).
        shown: what their images show (`read_scene`).
    """
    shifts = range(1, min(_SHIFTS, len(asked) - 1) + 1)
    others = [asked[(i + shift) % len(asked)] for shift in shifts for i in range(len(asked))]
    answers = [agreeing_facts(*pair) for pair in zip(asked, shown, strict=True)]
    guesses = [agreeing_facts(*pair) for pair in zip(list(asked) * len(shifts), others, strict=True)]
    objects = [len(scene.things) for scene in asked]
    scores = {"all": _share(answers, guesses, objects, KINDS, (1, 2))}
    scores |= {kind: _share(answers, guesses, objects, (kind,), (1, 2)) for kind in KINDS}
    for count, name in ((1, "one object"), (2, "two objects")):
        if count in objects:
            scores[name] = _share(answers, guesses, objects, KINDS, (count,))
    return scores


def unreadable_share(shown: Sequence[Scene]) -> float:
    """Share of the scenes in which the reader couldn't tell some fact, or saw no object."""

    def whole(scene: Scene) -> bool:
        words = [word for thing in scene.things for word in dataclasses.astuple(thing)]
        return bool(words) and None not in (*words, scene.background)

    return float(np.mean([not whole(scene) for scene in shown]))


def _share(
    answers: list[list[tuple[str, bool]]],
    guesses: list[list[tuple[str, bool]]],
    objects: list[int],
    kinds: tuple[str, ...],
    counts: tuple[int, ...],
) -> AttributeScore:
    """Over the facts of some kinds, in the scenes with some numbers of objects; resampled by image."""

    def tally(facts: list[list[tuple[str, bool]]]) -> np.ndarray:
        rows = [
            [sum(right for kind, right in row if kind in kinds), sum(kind in kinds for kind, _ in row)]
            for row, count in zip(facts, objects * (len(facts) // len(objects)), strict=True)
            if count in counts
        ]
        return np.array(rows, float)  # [images, (shown, asked)]

    def ratio(rows: np.ndarray) -> float:
        shown, wanted = rows.sum(axis=0)
        return float(shown / wanted)

    rows = tally(answers)
    accuracy = bootstrap(lambda chosen: ratio(rows[chosen]), len(rows))
    chance = ratio(tally(guesses)) if guesses else float("nan")
    return AttributeScore(accuracy, chance, int(rows[:, 1].sum()))
