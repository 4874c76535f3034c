"""Plots as SVG text, once for light and once for dark pages."""

import contextlib
import csv
import dataclasses
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

INK = {"light": "#1f2430", "dark": "#e6e8ee"}
_STYLES = matplotlib.color_sequences["tab10"]
_SHORT = 24  # characters of labels that fit into two columns
_MARKERS = "osD^vPX*"
_MOST_LETTERS = 60
_NAMED = 7.5  # points: the size of names beside points
Curve = tuple[Sequence[float], Sequence[float]]


@dataclasses.dataclass(frozen=True)
class PlottedCurve:
    """A curve, or points that belong together.

    Attributes:
        label: in the legend.
        x, y: of each point.
        low, high: ends of each point's interval; None, or an empty sequence, where there is none.
        names: written beside the points; empty: none.
        published: another's figures, drawn hollow and dashed.
        joined: whether a line joins the points.
    """

    label: str
    x: Sequence[float]
    y: Sequence[float]
    low: Sequence[float | None] = ()
    high: Sequence[float | None] = ()
    names: Sequence[str] = ()
    published: bool = False
    joined: bool = True


def read_metrics(path: Path) -> dict[str, np.ndarray]:
    """The columns of a run's `metrics.csv`, float64 each."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {name: np.array([float(row[name]) for row in rows]) for name in (rows[0] if rows else [])}


def line_plot(curves: Mapping[str, Curve], y_label: str, theme: str) -> str:
    """Curves over optimiser updates, the y axis logarithmic, as an SVG document.

    Args:
        curves: label -> (updates, values).
        y_label: what the values are.
        theme: a key of `INK`.
    """
    with themed(theme):
        figure, axes = _figure(list(curves))
        for index, (label, (x, y)) in enumerate(curves.items()):
            dashes = "-" if index % 2 == 0 else "--"  # shows both of two curves that coincide
            axes.plot(x, y, color=_STYLES[index % len(_STYLES)], label=label, linewidth=1.6, linestyle=dashes)
        axes.set_yscale("log")
        _describe(axes, "optimiser updates", y_label)
        return svg_text(figure)


def curve_plot(
    curves: Sequence[PlottedCurve], x_label: str, y_label: str, theme: str, log_x: bool = False, scale: float = 1.0
) -> str:
    """Curves and points with intervals, as an SVG document.

    Args:
        curves: measured and published ones; those of one label share a colour.
        x_label, y_label: what is shown.
        theme: a key of `INK`.
        log_x: a logarithmic x axis; all x are positive then.
        scale: x and its ticks are in units of this.
    """
    labels = list(dict.fromkeys(_legend(curve) for curve in curves))
    with themed(theme):
        figure, axes = _figure(labels)
        _draw_all(axes, curves, log_x, scale)
        _describe(axes, plain(x_label), plain(y_label))
        if any(curve.names for curve in curves):
            figure.draw_without_rendering()  # lays the axes out, so that places on the page are known
            _write_names(axes, curves, scale)
        return svg_text(figure)


class Panel(Protocol):
    """A figure among others, see `curve_plot`."""

    x_label: str
    y_label: str
    curves: Sequence[PlottedCurve]
    log_x: bool


def panel_plot(panels: Sequence[Panel]) -> str:
    """Several figures of curves beneath each other, on white, as an SVG document; points have no names."""
    with themed("light"):
        figure = Figure(figsize=(6.4, 3.2 * len(panels)), layout="constrained")
        for axes, panel in zip(figure.subplots(len(panels), squeeze=False)[:, 0], panels, strict=True):
            _draw_all(axes, panel.curves, panel.log_x, 1.0)
            axes.set_xlabel(plain(panel.x_label))
            axes.set_ylabel(plain(panel.y_label))
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
            axes.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1, 0.5))
        return svg_text(figure, transparent=False)


def _draw_all(axes: Axes, curves: Sequence[PlottedCurve], log_x: bool, scale: float) -> None:
    colours = list(dict.fromkeys(curve.label for curve in curves))
    for curve in curves:
        index = colours.index(curve.label)
        _draw(axes, curve, _STYLES[index % len(_STYLES)], _MARKERS[index % len(_MARKERS)], scale)
    if log_x:
        axes.set_xscale("log")
    axes.margins(0.12)


def _legend(curve: PlottedCurve) -> str:
    label = plain(curve.label)
    return f"{label} (published)" if curve.published else label


def plain(text: str) -> str:
    """Text from a file, short, without mathematics, and without the underscore that hides a label from legends."""
    shown = "".join(letter if letter.isprintable() else "?" for letter in text[:_MOST_LETTERS])
    shown = f"{shown}..." if len(text) > _MOST_LETTERS else shown
    return shown.replace("$", r"\$") if not shown.startswith("_") else plain(f" {shown}")


def _draw(axes: Axes, curve: PlottedCurve, colour: str, marker: str, scale: float) -> None:
    x = np.asarray(curve.x, float) / scale
    y = np.asarray(curve.y, float)
    line = "none" if not curve.joined else "--" if curve.published else "-"
    face = "none" if curve.published else colour
    axes.plot(
        *(x, y),
        color=colour,
        label=_legend(curve),
        linewidth=1 if curve.published else 1.6,
        linestyle=line,
        marker=marker,
        markersize=6,
        markerfacecolor=face,
        markeredgewidth=1.3,
        zorder=2 if curve.published else 3,
    )
    known = [i for i, (low, high) in enumerate(zip(curve.low, curve.high, strict=True)) if None not in (low, high)]
    if known:
        low, high = (np.array([side[i] for i in known], float) for side in (curve.low, curve.high))
        axes.vlines(x[known], low, high, color=colour, linewidth=1.2, zorder=2)
        if curve.joined:
            axes.fill_between(x[known], low, high, color=colour, alpha=0.15, linewidth=0)


def _write_names(axes: Axes, curves: Sequence[PlottedCurve], scale: float) -> None:
    """Writes each point's name where it covers least of other points and names."""
    places = axes.transData.transform(
        [(x / scale, y) for curve in curves for x, y in zip(curve.x, curve.y, strict=True)]
    )
    unit = axes.figure.dpi / 72
    taken = [(x - 4 * unit, y - 4 * unit, x + 4 * unit, y + 4 * unit) for x, y in places]
    names = [(name, place) for name, place in zip(_names(curves), places, strict=True) if name]
    for name, (x, y) in names:
        width, height, gap = 0.58 * _NAMED * unit * len(name), 1.1 * _NAMED * unit, 6 * unit
        corners = [
            (x + gap, y - height / 2), (x - gap - width, y - height / 2),
            (x - width / 2, y + gap), (x - width / 2, y - gap - height),
            (x + gap, y + gap / 2), (x - gap - width, y - gap / 2 - height),
        ]  # fmt: skip
        boxes = [(left, bottom, left + width, bottom + height) for left, bottom in corners]
        best = min(boxes, key=lambda box: _covered(box, taken) + _outside(box, axes.bbox.extents))
        taken.append(best)
        offset = ((best[0] - x) / unit, (best[1] - y) / unit)
        place = axes.transData.inverted().transform((x, y))
        axes.annotate(plain(name), place, offset, textcoords="offset points", fontsize=_NAMED, alpha=0.85)


def _names(curves: Sequence[PlottedCurve]) -> list[str]:
    return [name for curve in curves for name in (curve.names or [""] * len(curve.x))]


Box = tuple[float, float, float, float]


def _covered(box: Box, others: Sequence[Box]) -> float:
    """The area of `box` in others; each is left, bottom, right, top."""
    sides = ((min(box[2], o[2]) - max(box[0], o[0]), min(box[3], o[3]) - max(box[1], o[1])) for o in others)
    return sum(max(0.0, width) * max(0.0, height) for width, height in sides)


def _outside(box: Box, whole: Sequence[float]) -> float:
    left, bottom, right, top = whole
    inside = (max(box[0], left), max(box[1], bottom), min(box[2], right), min(box[3], top))
    return (box[2] - box[0]) * (box[3] - box[1]) - _covered(box, [inside])


@contextlib.contextmanager
def themed(theme: str) -> Iterator[None]:
    """Matplotlib's options of a theme, a key of `INK`."""
    ink = INK[theme]
    options = {"text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink, "axes.edgecolor": ink}
    options |= {"svg.fonttype": "none", "svg.hashsalt": "bksdm_jax", "font.family": "sans-serif", "font.size": 11}
    with matplotlib.rc_context(options):
        yield


def _figure(labels: Sequence[str]) -> tuple[Figure, Axes]:
    """An empty figure with room for its legend, which is above the axes."""
    lines = math.ceil(len(labels) / _legend_columns(labels))
    figure = Figure(figsize=(5.2, 3.0 + 0.22 * lines), layout="constrained")
    return figure, figure.add_subplot()


def _legend_columns(labels: Sequence[str]) -> int:
    return 2 if max(map(len, labels), default=0) <= _SHORT else 1


def _describe(axes: Axes, x_label: str, y_label: str) -> None:
    axes.set_xlabel(x_label)
    axes.set_ylabel(y_label)
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    handles, labels = axes.get_legend_handles_labels()
    columns = _legend_columns(labels)
    axes.figure.legend(handles, labels, frameon=False, fontsize=9, ncols=columns, loc="outside upper left")


def svg_text(figure: Figure, transparent: bool = True) -> str:
    """A figure as an SVG document, the same bytes each time."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", transparent=transparent, metadata={"Date": None})
    return buffer.getvalue()
