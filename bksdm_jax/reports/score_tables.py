"""The tables of the page of scores, as they are shown and as CSV files."""

import csv
import dataclasses
import io
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bksdm_jax.reports import published as paper
from bksdm_jax.reports.curves import COLUMNS, Point
from bksdm_jax.reports.score_files import Entry, Scored

_MEANS = {
    "fid_pytorch_fid": "Frechet distance of Inception features, with pytorch-fid's resize and weights",
    "inception_score": "inception score, as torch-fidelity takes it",
    "clip_score": "mean cosine of image and caption by CLIP",
    "attribute_accuracy": "share of a caption's facts that a reader finds in the image (shapes world)",
    "clip_score_shapes": "mean cosine by the shapes world's small CLIP, not comparable with others",
    "fd_clip_shapes": "Frechet distance by the shapes world's small CLIP, not comparable with others",
}
_LOWER = ("fid_", "fd_", "kid_", "cmmd")
_HIGHER = (
    *("inception_score", "clip_", "attribute_accuracy", "dino"),
    *("precision_", "recall_", "density_", "coverage_"),
)
_DIGITS = {"fid_": 2, "fd_": 2, "inception_score": 2, "cmmd": 3, "kid_": 5}


@dataclasses.dataclass(frozen=True)
class Table:
    """A table as a CSV file, with all digits."""

    name: str
    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]

    def text(self) -> str:
        """The file's content."""
        buffer = io.StringIO(newline="")
        writer = csv.writer(buffer, lineterminator="\n")
        writer.writerow(self.columns)
        writer.writerows(self.rows)
        return buffer.getvalue()


def better(metric: str) -> str:
    """`lower`, `higher`, or empty if it isn't known which is better."""
    if metric.startswith(_LOWER):
        return "lower"
    return "higher" if metric.startswith(_HIGHER) else ""


def measured(columns: Iterable[str]) -> list[str]:
    """The names of metrics among a table's columns, without the ends of their intervals."""
    return [name for name in columns if not name.endswith(("/low", "/high"))]


def formatted(metric: str, value: float) -> str:
    """A score with the digits that are usual for its metric."""
    digits = next((digits for start, digits in _DIGITS.items() if metric.startswith(start)), 4)
    return f"{value:,.{digits}f}"


def explained(models: Mapping[str, Scored], metric: str) -> str:
    """What a metric is and how its intervals were taken, as far as known."""
    ways = dict.fromkeys(one.scores[metric].interval for one in models.values() if metric in one.scores)
    return "; ".join([*filter(None, [_MEANS.get(metric)]), *(f"interval: {way}" for way in ways if way)])


def metrics_of(models: Mapping[str, Scored], published: bool) -> list[str]:
    """The columns: the paper's metrics first, if shown or measured, then the others as they come."""
    measured = list(dict.fromkeys(metric for one in models.values() for metric in one.scores))
    first = [metric for metric in paper.METRICS if published or metric in measured]
    return first + [metric for metric in measured if metric not in first]


def score_table(models: Mapping[str, Scored], metrics: Sequence[str]) -> Table:
    """`scores.csv`: a row per measured model."""
    about = ("images", "protocol", "departures", "unet_parameters", "unet_macs", "seconds_per_image")
    scores = [f"{metric}{part}" for metric in metrics for part in ("", "_low", "_high", "_interval")]
    rows = []
    for label, one in models.items():
        row = [one.images, one.protocol, "; ".join(one.departures), one.parameters, one.macs, one.seconds]
        entries = [one.scores.get(metric, Entry(None, None, None, "")) for metric in metrics]
        rows.append([label, *row, *(part for entry in entries for part in dataclasses.astuple(entry))])
    return Table("scores.csv", ("model", *about, *scores), rows)


def published_table(rows: Sequence[paper.Published]) -> Table:
    """`published.csv`: a row per published model."""
    columns = ("model", "source", "images", "protocol", "unet_parameters", "unet_macs", *paper.METRICS)
    source = (paper.PAPER, paper.IMAGES, paper.PROTOCOL)
    return Table(
        "published.csv", columns, [(row.label, *source, row.parameters, row.macs, *row.scores) for row in rows]
    )


def group_tables(models: Mapping[str, Scored]) -> list[Table]:
    """A table per metric that has groups, `groups.csv`, `groups_1.csv`, ..., with a row per model and group."""
    metrics = dict.fromkeys(metric for one in models.values() for metric in one.groups)
    tables = []
    for number, metric in enumerate(metrics):
        rows = [
            (label, metric, group, *dataclasses.astuple(entry))
            for label, one in models.items()
            for group, entry in one.groups.get(metric, {}).items()
        ]
        name = f"groups_{number}.csv" if number else "groups.csv"
        tables.append(Table(name, ("model", "metric", "group", "value", "low", "high", "interval"), rows))
    return tables


def fact_table(models: Mapping[str, Scored]) -> Table:
    """`facts.csv`: a row per fact, a column per model."""
    keys = dict.fromkeys(key for one in models.values() for key in one.facts)
    return Table(
        "facts.csv", ("fact", *models), [(key, *(one.facts.get(key, "") for one in models.values())) for key in keys]
    )


def curve_table(points: Sequence[Point]) -> Table:
    """`curves.csv`: every point of the curves."""
    return Table("curves.csv", COLUMNS, [dataclasses.astuple(point) for point in points])
