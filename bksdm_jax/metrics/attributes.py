"""Attribute accuracy: the share of a shapes-world caption's facts that its image shows."""

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np

from bksdm_jax.metrics.bootstrap import Score, bootstrap
from bksdm_jax.shapes.codes import decode
from bksdm_jax.shapes.scenes import KINDS, Scene, agreeing_facts

_SHIFTS = 20  # other captions that each image is compared with to estimate chance


@dataclasses.dataclass(frozen=True)
class GroupScore(Score):
    """The share of a group's facts that are shown, its chance level, and the number of facts."""

    chance: float = 0.0
    facts: int = 0


@dataclasses.dataclass(frozen=True)
class AttributeScore(GroupScore):
    """The share of all facts.

    Attributes:
        unreadable: share of the images in which the reader couldn't recognise some fact, or any object.
        groups: the shares of groups of facts.
    """

    unreadable: float = 0.0
    groups: Mapping[str, GroupScore] = dataclasses.field(default_factory=dict)


def attribute_score(scenes: np.ndarray) -> AttributeScore:
    """The accuracy over codes of the scenes that were asked for and are shown, uint8 [N, 2, WIDTH]."""
    asked, shown = ([decode(row) for row in scenes[:, side]] for side in (0, 1))
    groups = attribute_scores(asked, shown)
    return AttributeScore(**vars(groups["all"]), unreadable=unreadable_share(shown), groups=groups)


def attribute_scores(asked: Sequence[Scene], shown: Sequence[Scene]) -> dict[str, GroupScore]:
    """The accuracy of all facts (`all`), by kind of fact, and by the number of objects (`one object`, `two objects`).

    A group is left out if there are no such facts.

    A fact that the reader can't recognise counts as not shown. Chance is the accuracy that correct pictures of other
    captions in the list would have.

    Args:
        asked: the captions' scenes (`parse_caption`).
        shown: the images' scenes (`read_scene`).
    """
    answers = _tallies(asked, shown)
    shifts = range(1, min(_SHIFTS, len(asked) - 1) + 1)
    guesses = sum((_tallies(asked, [*asked[shift:], *asked[:shift]]) for shift in shifts), np.zeros_like(answers))
    objects = np.array([len(scene.things) for scene in asked])
    every = np.full(len(asked), True)
    scores = {"all": _share(answers, guesses, every)}
    for number, kind in enumerate(KINDS):
        if not answers[:, number, 1].any():
            continue  # no caption says any
        scores[kind] = _share(answers[:, [number]], guesses[:, [number]], every)
    for count, name in ((1, "one object"), (2, "two objects")):
        if count in objects:
            scores[name] = _share(answers, guesses, objects == count)
    return scores


def unreadable_share(shown: Sequence[Scene]) -> float:
    """Share of the scenes in which the reader couldn't recognise some fact, or any object."""

    def readable(scene: Scene) -> bool:
        words = [word for thing in scene.things for word in dataclasses.astuple(thing)]
        return bool(words) and None not in (*words, scene.background)

    return float(np.mean([not readable(scene) for scene in shown]))


def _tallies(asked: Sequence[Scene], shown: Sequence[Scene]) -> np.ndarray:
    """Numbers of facts shown and asked for, by image and kind, [N, kinds, 2]."""
    tallies = np.zeros((len(asked), len(KINDS), 2), int)
    for tally, *pair in zip(tallies, asked, shown, strict=True):
        for kind, right in agreeing_facts(*pair):
            tally[KINDS.index(kind)] += (right, 1)
    return tallies


def _share(answers: np.ndarray, guesses: np.ndarray, chosen: np.ndarray) -> GroupScore:
    """The accuracy over all facts in tallies [N, kinds, 2] of the chosen images; bootstrapped over images."""

    def ratio(rows: np.ndarray) -> float:
        shown, wanted = rows.sum(axis=0)
        return float(shown / wanted) if wanted else float("nan")

    rows, guessed = answers[chosen].sum(axis=1), guesses[chosen].sum(axis=1)  # [N, 2]
    accuracy = bootstrap(lambda some: ratio(rows[some]), len(rows))
    return GroupScore(**vars(accuracy), chance=ratio(guessed), facts=int(rows[:, 1].sum()))
