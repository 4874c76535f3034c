"""Points of curves, from files: a score over guidance, steps, updates, data, learning rate."""

import dataclasses
import json
from collections.abc import Iterable, Sequence
from typing import Any

from bksdm_jax.base.errors import InputError, finite_number, in_short, shown
from bksdm_jax.base.files import read_text
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.data.tables import read_table
from bksdm_jax.reports.figures import PlottedCurve

MOST_POINTS = 10_000
_MOST_BYTES = 2**22
_MOST_LETTERS = 200
_REQUIRED = ("curve", "x_name", "x", "metric", "value")
_WIDE = 20  # largest x over smallest, from which on the axis is logarithmic


@dataclasses.dataclass(frozen=True)
class Point:
    """One point of a curve.

    Attributes:
        curve: label of the curve.
        x_name, x: what was varied, and its value here.
        metric, value, low, high: the score, with its interval or None.
        published: whether it is another's figure.
    """

    curve: str
    x_name: str
    x: float
    metric: str
    value: float
    low: float | None = None
    high: float | None = None
    published: bool = False


COLUMNS = tuple(field.name for field in dataclasses.fields(Point))
"""Of a file of points, and of `curves.csv`."""


def read_points(path: AnyPath) -> list[Point]:
    """The points in a `.csv` file, or in a `.json` list of objects, with the keys `COLUMNS`.

    `low` and `high` may be missing or empty; `published` may be missing (false), `true`, `false`, `1` or `0`.

    Raises:
        InputError: the file can't be read, has another ending, or a row (named) isn't a point.
    """
    if path.suffix.lower() not in (".csv", ".json"):
        raise InputError(f"{path}: expected a .csv or .json file of points with {', '.join(COLUMNS)}")
    rows = _csv_rows(path) if path.suffix.lower() == ".csv" else _json_rows(path)
    if len(rows) > MOST_POINTS:
        raise InputError(f"{path}: {len(rows)} points; the limit is {MOST_POINTS}")
    return [_point(f"{path}: row {number}", row) for number, row in enumerate(rows, start=1)]


def _csv_rows(path: AnyPath) -> list[dict[str, Any]]:
    header = [name.strip() for name in read_text(path, _MOST_BYTES).split("\n", 1)[0].split(",")]
    optional = [name for name in COLUMNS if name not in _REQUIRED and name in header]
    return read_table(path, (*_REQUIRED, *optional))


def _json_rows(path: AnyPath) -> list[dict[str, Any]]:
    try:
        rows = json.loads(read_text(path, _MOST_BYTES))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not valid JSON ({in_short(error)})") from error
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise InputError(f"{path}: expected a list of objects with {', '.join(COLUMNS)}")
    return rows


def _point(where: str, row: dict[str, Any]) -> Point:
    names = {}
    for key in ("curve", "x_name", "metric"):
        names[key] = row.get(key)
        if not isinstance(names[key], str) or not 0 < len(names[key]) <= _MOST_LETTERS:
            raise InputError(f"{where}: {key} is {shown(names[key])}; expected a name")
    low, high = (None if row.get(key) in (None, "") else _number(where, key, row[key]) for key in ("low", "high"))
    published = str(row.get("published") or "false").strip().lower()
    if published not in ("true", "false", "1", "0"):
        raise InputError(f"{where}: published is {shown(row['published'])}; expected true or false")
    x, value = _number(where, "x", row.get("x")), _number(where, "value", row.get("value"))
    return Point(**names, x=x, value=value, low=low, high=high, published=published in ("true", "1"))


def _number(where: str, key: str, value: Any) -> float:
    try:
        return finite_number(where, key, float(value) if isinstance(value, str) else value)
    except ValueError as error:
        raise InputError(f"{where}: {key} is {shown(value)}; expected a finite number") from error


@dataclasses.dataclass(frozen=True)
class Axes:
    """What one figure shows."""

    x_label: str
    y_label: str
    curves: tuple[PlottedCurve, ...]
    log_x: bool = False


def figures_of(points: Sequence[Point]) -> list[Axes]:
    """A figure for every score and quantity that was varied, then the trade-offs of two scores.

    A trade-off has CLIP score to the right and a Frechet distance upwards, for curves over guidance that have both;
    its points are named by their guidance scale.
    """
    places = dict.fromkeys((point.x_name, point.metric) for point in points)
    found = []
    for x_name, metric in places:
        chosen = [point for point in points if (point.x_name, point.metric) == (x_name, metric)]
        xs = [point.x for point in chosen]
        found.append(Axes(x_name, metric, tuple(_curves(chosen)), min(xs) > 0 and max(xs) >= _WIDE * min(xs)))
    guided = [metric for x_name, metric in places if x_name == "guidance_scale"]
    for x_metric in (name for name in guided if name.startswith("clip_score")):
        for y_metric in (name for name in guided if name.startswith(("fid_", "fd_"))):
            if curves := tuple(_tradeoffs(points, x_metric, y_metric)):
                found.append(Axes(x_metric, y_metric, curves))
    return found


def _curves(points: Iterable[Point]) -> list[PlottedCurve]:
    grouped: dict[tuple[str, bool], list[Point]] = {}
    for point in points:
        grouped.setdefault((point.curve, point.published), []).append(point)
    curves = []
    for (label, published), members in grouped.items():
        ordered = sorted(members, key=lambda point: point.x)
        x, y, low, high = ([getattr(one, key) for one in ordered] for key in ("x", "value", "low", "high"))
        curves.append(PlottedCurve(label, x, y, low, high, published=published))
    return curves


def _tradeoffs(points: Sequence[Point], x_metric: str, y_metric: str) -> list[PlottedCurve]:
    tables: dict[tuple[str, bool], dict[float, dict[str, float]]] = {}
    for point in points:
        if point.x_name == "guidance_scale":
            table = tables.setdefault((point.curve, point.published), {})
            table.setdefault(point.x, {})[point.metric] = point.value
    curves = []
    for (label, published), table in tables.items():
        both = [(scale, table[scale]) for scale in sorted(table) if {x_metric, y_metric} <= table[scale].keys()]
        if both:
            x, y = ([values[metric] for _, values in both] for metric in (x_metric, y_metric))
            names = [f"{scale:g}" for scale, _ in both]
            curves.append(PlottedCurve(label, x, y, names=names, published=published))
    return curves
