"""Plots as SVG text, once for light and once for dark pages."""

import csv
import io
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import matplotlib
import numpy as np
from matplotlib.figure import Figure

INK = {"light": "#1f2430", "dark": "#e6e8ee"}
_SHORT = 24  # characters of labels that fit into two columns
Curve = tuple[Sequence[float], Sequence[float]]


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
    ink = INK[theme]
    options = {"text.color": ink, "axes.labelcolor": ink, "xtick.color": ink, "ytick.color": ink, "axes.edgecolor": ink}
    options |= {"svg.fonttype": "none", "svg.hashsalt": "bksdm_jax", "font.family": "sans-serif", "font.size": 11}
    with matplotlib.rc_context(options):
        columns = 2 if max(map(len, curves), default=0) <= _SHORT else 1
        lines = math.ceil(len(curves) / columns)
        figure = Figure(figsize=(5.2, 3.0 + 0.22 * lines), layout="constrained")  # the legend is above the axes
        axes = figure.add_subplot()
        styles = matplotlib.color_sequences["tab10"]
        for index, (label, (x, y)) in enumerate(curves.items()):
            dashes = "-" if index % 2 == 0 else "--"  # shows both of two curves that coincide
            axes.plot(x, y, color=styles[index % len(styles)], label=label, linewidth=1.6, linestyle=dashes)
        axes.set_yscale("log")
        axes.set_xlabel("optimiser updates")
        axes.set_ylabel(y_label)
        axes.grid(alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        figure.legend(frameon=False, fontsize=9, ncols=columns, loc="outside upper left")
        buffer = io.StringIO()
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    return buffer.getvalue()
