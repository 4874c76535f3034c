"""Scores over updates, and over what runs of a sweep differ in, as points and as one figure."""

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.base.files import atomic_file
from bksdm_jax.reports.curves import Point, figures_of
from bksdm_jax.reports.figures import panel_plot
from bksdm_jax.reports.published import published_points
from bksdm_jax.reports.score_tables import curve_table

UPDATES = "updates"


def read_rows(path: Path) -> list[dict[str, str]]:
    """The complete rows of a run's table, as text by column; none if there is no such file."""
    if not path.is_file():
        return []
    with path.open(encoding="utf-8", newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values() and None not in row]


def points_over_updates(path: Path, curve: str) -> list[Point]:
    """The points of a run's `scores.csv`; none if there is no such file.

    Raises `InputError` if a step or score isn't a number.
    """
    points = []
    for row in read_rows(path):
        try:
            points += points_of(row, curve, UPDATES, float(row.get("step", "")))
        except ValueError as error:
            raise InputError(f"{path}: {shown(row)} isn't a row of step and scores; delete it") from error
    return points


def points_of(row: Mapping[str, str], curve: str, x_name: str, x: float) -> list[Point]:
    """A row of `scores.csv` as points, without scores that are undefined."""
    found = []
    for metric in row:
        if metric != "step" and not metric.endswith(("/low", "/high")):
            value, low, high = (_number(row.get(f"{metric}{end}", "")) for end in ("", "/low", "/high"))
            if value is not None:
                found.append(Point(curve, x_name, x, metric, value, low, high))
    return found


def with_published(points: Sequence[Point]) -> list[Point]:
    """The points, and the paper's of the same scores over the same quantities."""
    measured = {(point.x_name, point.metric) for point in points}
    return [*points, *(point for point in published_points() if (point.x_name, point.metric) in measured)]


def write_score_plot(path: Path, points: Sequence[Point]) -> None:
    """Draws a figure per score and quantity, beneath each other, in an SVG file; published points are hollow.

    Raises `InputError` if it can't be written.
    """
    with atomic_file(path) as temporary:
        temporary.write_text(panel_plot(figures_of(points)), encoding="utf-8")


def write_points(path: Path, points: Sequence[Point]) -> None:
    """Writes the points as a `.csv` file that `read_points` reads; raises `InputError` if it can't be written."""
    with atomic_file(path) as temporary:
        temporary.write_text(curve_table(points).text(), encoding="utf-8", newline="")


def _number(text: str) -> float | None:
    value = float(text) if text else math.nan
    return value if math.isfinite(value) else None
