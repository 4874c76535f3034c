"""How alike two models' maps of the same words are."""

import dataclasses
import string
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bksdm_jax.base.files import read_json
from bksdm_jax.metrics.bootstrap import Score, bootstrap

_CONSTANT = 1e-6  # of the largest value: what rounding leaves of a constant map


class Likeness(NamedTuple):
    """Pearson's correlation over the pixels, in [-1, 1], and intersection over union, in [0, 1]; None: undefined."""

    correlation: float | None
    iou: float | None


Pairs = Sequence[tuple[str, Likeness]]
"""The words of a prompt, and how alike their maps are."""


def likeness(first: np.ndarray, second: np.ndarray, threshold: float) -> Likeness:
    """Of two maps [h, w] without negative values; undefined if one of them is constant.

    A map marks the pixels with at least `threshold` of its largest value (as in DAAM).
    """
    pair = [map_.astype(np.float64) for map_ in (first, second)]
    if any(np.ptp(map_) <= _CONSTANT * map_.max() for map_ in pair):
        return Likeness(None, None)
    centred = [map_ - map_.mean() for map_ in pair]
    norms = [np.sqrt(np.sum(map_**2)) for map_ in centred]
    marks = [map_ >= threshold * map_.max() for map_ in pair]
    correlation = np.sum(centred[0] * centred[1]) / (norms[0] * norms[1])
    return Likeness(float(correlation.clip(-1, 1)), float((marks[0] & marks[1]).sum() / (marks[0] | marks[1]).sum()))


def mean_likeness(prompts: Sequence[Pairs]) -> dict[str, Any]:
    """Means over all words, with 95% percentile intervals of a bootstrap over prompts; `words`: how many there are.

    Undefined ones aren't counted; without any, `value` is None.
    """
    found: dict[str, Any] = {}
    for name in Likeness._fields:
        values = [[value for _, one in pairs if (value := getattr(one, name)) is not None] for pairs in prompts]
        found[name] = _mean([own for own in values if own])
        found["words"] = sum(map(len, values))
    return found


def _mean(values: Sequence[Sequence[float]]) -> dict[str, Any]:
    if not values:
        return {"value": None, "low": None, "high": None, "interval": ""}
    sums, counts = (np.array([measure(own) for own in values], np.float64) for measure in (sum, len))
    score: Score = bootstrap(lambda some: float(sums[some].sum() / counts[some].sum()), len(values), over="prompts")
    return dataclasses.asdict(score)


def by_word(prompts: Sequence[Pairs]) -> dict[str, dict[str, Any]]:
    """Word, in lower case and without punctuation around it -> means of its likeness, and how often it occurs."""
    found: dict[str, list[Likeness]] = {}
    for text, one in (pair for pairs in prompts for pair in pairs):
        found.setdefault(text.strip(string.punctuation).lower() or text, []).append(one)
    return {text: _means(own) for text, own in sorted(found.items(), key=lambda entry: (-len(entry[1]), entry[0]))}


def _means(own: Sequence[Likeness]) -> Mapping[str, Any]:
    values = {name: [v for one in own if (v := getattr(one, name)) is not None] for name in Likeness._fields}
    return {name: float(np.mean(some)) if some else None for name, some in values.items()} | {"count": len(own)}


def likeness_lines(path: Path) -> list[str]:
    """A table of the means in an `attribution.json`."""
    found = read_json(path)
    lines = [f"{'student':<12}{'words':>6}{'correlation':>24}{'IoU':>24}"]
    for name, own in found["mean"].items():
        cells = "".join(f"{_shown(own[key]):>24}" for key in Likeness._fields)
        lines.append(f"{name:<12}{own['words']:>6}{cells}")
    return lines


def _shown(score: Mapping[str, Any]) -> str:
    if score["value"] is None:
        return "undefined"
    span = f" [{score['low']:.2f}, {score['high']:.2f}]" if score["low"] is not None else ""
    return f"{score['value']:.2f}{span}"
