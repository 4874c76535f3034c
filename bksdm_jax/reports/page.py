"""The HTML page of a comparison, a single self-contained file."""

import csv
from pathlib import Path
from typing import Any

from bksdm_jax.base.files import read_json
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.reports.figures import Curve, line_plot, read_metrics
from bksdm_jax.reports.pictures import data_uri
from bksdm_jax.reports.template import write_template

COLUMNS = 8
"""Number of captions in the image grid."""

GROUPS = ("all", "shape", "colour", "size", "place", "background", "count", "one object", "two objects")
"""Groups of facts, in the table's order."""


@waiting("writing the report", QUIET)
def write_page(workdir: Path) -> Path:
    """Writes `report.html` from `report.json` and the files below `samples/` and `models/`, and returns its path."""
    report = read_json(workdir / "report.json")
    trained = [row for row in report["rows"] if row["trained"]]
    metrics = {row["label"]: read_metrics(workdir / "models" / row["name"] / "metrics.csv") for row in trained}
    distilled = next((label for label, columns in reversed(metrics.items()) if _features(columns)), None)
    return write_template(
        workdir / "report.html",
        "report.html.j2",
        report=report,
        config=report["config"],
        grid=_grid(workdir, report["rows"]),
        losses=_plot({label: (one["step"], one["loss_task"]) for label, one in metrics.items()}, "task loss"),
        features=_plot(_features(metrics[distilled]), "mean squared error") if distilled else None,
        distilled=distilled,
        batch_size=read_json(workdir / "samples" / report["rows"][0]["name"] / "timing.json")["batch_size"],
        groups=[group for group in GROUPS if group in report["rows"][0]["scores"]["attribute_accuracy"]["groups"]],
    )


def _features(columns: dict[str, Any]) -> dict[str, Curve]:
    found = {name: values for name, values in columns.items() if name.startswith("feature/")}
    return {name.removeprefix("feature/"): (columns["step"], values) for name, values in found.items()}


def _plot(curves: dict[str, Curve], y_label: str) -> dict[str, str] | None:
    """A figure as a data URI for each theme."""
    if not curves:
        return None
    return {theme: data_uri(line_plot(curves, y_label, theme).encode(), "image/svg+xml") for theme in ("light", "dark")}


def _grid(workdir: Path, rows: list[dict[str, Any]]) -> dict[str, Any]:
    """The captions, and each row's images for them."""
    with (workdir / "prompts.csv").open(encoding="utf-8", newline="") as file:
        captions = [row["text"] for row in csv.DictReader(file)][:COLUMNS]
    images = {
        row["label"]: [
            data_uri((workdir / "samples" / row["name"] / "images" / f"{index:06d}.png").read_bytes(), "image/png")
            for index in range(len(captions))
        ]
        for row in rows
    }
    return {"captions": captions, "images": images}
