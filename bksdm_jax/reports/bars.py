"""Bars, one per block, as SVG text."""

import dataclasses
from collections.abc import Sequence

import matplotlib
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from bksdm_jax.reports.figures import INK, plain, svg_text, themed

_COLOURS = matplotlib.color_sequences["tab10"]
_WIDTH = 0.19  # inches of a bar with its gap
_LEAST, _MOST = 4.2, 24.0  # inches


@dataclasses.dataclass(frozen=True)
class Bar:
    """One bar.

    Attributes:
        label: beneath it.
        value: its height, from 0.
        kind: what it stands for, which its colour shows.
        low, high: ends of an interval; None: none is drawn.
    """

    label: str
    value: float
    kind: str
    low: float | None = None
    high: float | None = None


def bar_plot(
    bars: Sequence[Bar], y_label: str, theme: str, noise: tuple[float, float] | None = None, log: bool = False
) -> str:
    """Bars in their order, as an SVG document.

    Args:
        bars: at least one.
        y_label: what they show.
        theme: a key of `INK`.
        noise: the range of values that say nothing, shaded; None: none is.
        log: whether the y axis is logarithmic; all values are positive then.
    """
    kinds = list(dict.fromkeys(bar.kind for bar in bars))
    with themed(theme):
        width = min(max(_LEAST, 1.2 + _WIDTH * len(bars)), _MOST)
        figure = Figure(figsize=(width, 4.2), layout="constrained")
        axes = figure.add_subplot()
        colours = [_COLOURS[kinds.index(bar.kind) % len(_COLOURS)] for bar in bars]
        axes.bar(range(len(bars)), [bar.value for bar in bars], color=colours, width=0.75, zorder=2)
        for place, bar in enumerate(bars):
            if bar.low is not None and bar.high is not None:
                axes.vlines(place, bar.low, bar.high, color=INK[theme], linewidth=1, zorder=3)
        if noise:
            axes.axhspan(*noise, color=INK[theme], alpha=0.12, linewidth=0, zorder=1)
        if log:
            axes.set_yscale("log")
        else:
            axes.axhline(0, color=INK[theme], linewidth=0.8, zorder=3)
        axes.set_xticks(range(len(bars)), [plain(bar.label) for bar in bars], rotation=90, fontsize=7)
        axes.set_xlim(-0.7, len(bars) - 0.3)
        axes.set_ylabel(plain(y_label))
        axes.grid(axis="y", alpha=0.25)
        axes.spines[["top", "right"]].set_visible(False)
        if len(kinds) > 1:
            patches = [Patch(color=_COLOURS[i % len(_COLOURS)], label=plain(kind)) for i, kind in enumerate(kinds)]
            figure.legend(handles=patches, frameon=False, fontsize=9, ncols=4, loc="outside upper left")
        return svg_text(figure)
