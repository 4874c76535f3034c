"""Points over several quantities beside each other, as SVG text."""

import dataclasses
import math
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure

from bksdm_jax.reports.figures import INK, plain, svg_text, themed

_STYLES = matplotlib.color_sequences["tab10"]
_MARKERS = "osD^vPX*"
_COLUMNS = 3


@dataclasses.dataclass(frozen=True)
class Points:
    """Points of one kind, the same in every panel.

    Attributes:
        label: in the legend.
        y: of each.
        low, high: ends of each one's interval; None where there is none.
    """

    label: str
    y: Sequence[float]
    low: Sequence[float | None]
    high: Sequence[float | None]


@dataclasses.dataclass(frozen=True)
class ScatterPanel:
    """One quantity: its name, a line above the panel, and the x of all points, in the order of the kinds."""

    x_label: str
    title: str
    x: Sequence[Sequence[float]]
    log_x: bool = False


def scatter_plot(
    kinds: Sequence[Points], panels: Sequence[ScatterPanel], y_label: str, theme: str, transparent: bool = True
) -> str:
    """A panel per quantity, three in a row, with one y axis and one legend, as an SVG document.

    `theme` is a key of `INK`.
    """
    rows = math.ceil(len(panels) / _COLUMNS)
    with themed(theme):
        figure = Figure(figsize=(9.6, 0.5 + 2.9 * rows), layout="constrained")
        grid = figure.subplots(rows, _COLUMNS, sharey=True, squeeze=False).ravel()
        for axes, panel in zip(grid, panels, strict=False):
            for index, (kind, x) in enumerate(zip(kinds, panel.x, strict=True)):
                colour = _STYLES[index % len(_STYLES)]
                marker = _MARKERS[index % len(_MARKERS)]
                axes.plot(
                    x, kind.y, color=colour, marker=marker, markersize=6, linestyle="none", label=plain(kind.label)
                )
                for at, low, high in zip(x, kind.low, kind.high, strict=True):
                    if low is not None and high is not None:
                        axes.vlines(at, low, high, color=colour, linewidth=1)
            if panel.log_x:
                axes.set_xscale("log")
            axes.margins(0.1)
            axes.set_xlabel(plain(panel.x_label), fontsize=9)
            axes.set_title(plain(panel.title), fontsize=9, loc="left", color=INK[theme])
            axes.tick_params(labelsize=8)
            axes.grid(alpha=0.25)
            axes.spines[["top", "right"]].set_visible(False)
        for axes in grid[len(panels) :]:
            axes.set_visible(False)
        for axes in grid[::_COLUMNS]:
            axes.set_ylabel(plain(y_label), fontsize=9)
        handles, labels = grid[0].get_legend_handles_labels()
        figure.legend(handles, labels, frameon=False, fontsize=9, ncols=len(labels), loc="outside upper left")
        return svg_text(figure, transparent)
