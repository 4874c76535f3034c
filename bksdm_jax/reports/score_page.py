"""The HTML page of scores: measured beside published ones, images beneath each other, curves; a self-contained file."""

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bksdm_jax.base.errors import InputError, finite_number, shown, whole_number
from bksdm_jax.base.files import atomic_file
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.paths import local_path
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.base.workdir import claim, require_same
from bksdm_jax.reports import published as paper
from bksdm_jax.reports import score_tables as tables
from bksdm_jax.reports.config import ReportConfig
from bksdm_jax.reports.curves import Axes, Point, figures_of, read_points
from bksdm_jax.reports.figures import INK, PlottedCurve, curve_plot
from bksdm_jax.reports.pictures import Folder, Grid, data_uri, find_pictures, picture_grid
from bksdm_jax.reports.score_curves import with_published
from bksdm_jax.reports.score_files import Scored, read_scores
from bksdm_jax.reports.template import write_template

PAGE = "report.html"
MOST_MODELS, MOST_IMAGES = 16, 64
_MOST_LETTERS = 80  # of a label
_MOST_METRICS = 6  # with figures of cost
_COSTS = (("parameters", "U-Net parameters (M)", 1e6), ("macs", "multiply-adds of a U-Net call (G)", 1e9))
_WIDE = 8  # largest cost over smallest, from which on the axis is logarithmic


@one_run()
def report(config: ReportConfig, workdir: Path) -> Path:
    """Writes the page in `workdir`, in place of an earlier report's, and returns its path.

    Raises:
        InputError: as `write_score_page` and `read_points`, or the workdir is another program's.
    """
    record = dataclasses.asdict(config) | {"program": "launch.report"}
    require_same(workdir, record, [field.name for field in dataclasses.fields(config)])
    folders = [local_path("scores", name) for name in config.scores]
    points = [point for name in config.curves for point in read_points(local_path("curves", name))]
    models = read_models(folders, config.labels)
    whole_number("config", "images", config.images, 0, MOST_IMAGES)
    points += setting_points(models, config.over) if config.over else []
    claim(workdir, record)
    return _write(models, workdir, config.images, config.published, points)


def write_score_page(
    folders: Sequence[Path],
    workdir: Path,
    labels: Sequence[str] = (),
    images: int = 16,
    published: bool = True,
    points: Sequence[Point] = (),
) -> Path:
    """Writes `report.html` and its tables as `.csv` files in `workdir`, and returns the page's path.

    Args:
        folders: scoring workdirs, each with a `scores.json`; up to `MOST_MODELS`.
        workdir: an existing folder.
        labels: one per folder; empty: the models' names.
        images: columns of the image grid, up to `MOST_IMAGES`.
        published: show the paper's figures.
        points: of curves.

    Raises:
        InputError: a folder, label or image can't be used, a folder or label occurs twice, or a file can't be written.
    """
    whole_number("config", "images", images, 0, MOST_IMAGES)
    return _write(read_models(folders, labels), workdir, images, published, points)


def read_models(folders: Sequence[Path], labels: Sequence[str] = ()) -> dict[str, Scored]:
    """Label -> scores; without labels the models' names, or where these don't differ, the folders'.

    Raises `InputError` if a folder has no usable `scores.json`, or a folder or label occurs twice.
    """
    if not 0 < len(folders) <= MOST_MODELS:
        raise InputError(
            f"scores: {len(folders)} folders; expected 1 to {MOST_MODELS} workdirs of launch.score, "
            "--config.scores=\"('runs/a','runs/b')\""
        )
    real = [folder.resolve() for folder in folders]
    for folder, place in zip(folders, real, strict=True):
        if real.count(place) > 1:
            raise InputError(f"scores: {folder} occurs twice; name each workdir once")
    found = [read_scores(folder) for folder in folders]
    if labels and len(labels) != len(folders):
        raise InputError(f"labels: {len(labels)} for {len(folders)} folders; give one per folder, or none")
    if not labels:
        choices = ([one.name for one in found], [one.name for one in real], [str(place) for place in real])
        labels = next(names for names in choices if all(names) and len(set(names)) == len(names))
        labels = [label[-_MOST_LETTERS:] for label in labels]
    for label in labels:
        if not isinstance(label, str) or not 0 < len(label) <= _MOST_LETTERS:
            raise InputError(f"labels: {shown(label)}; expected text of up to {_MOST_LETTERS} characters")
        if list(labels).count(label) > 1:
            raise InputError(f"labels: {shown(label)} occurs twice; give each model its own with config.labels")
    return dict(zip(labels, found, strict=True))


def setting_points(models: Mapping[str, Scored], over: str) -> list[Point]:
    """The scores as points over the setting `over`, one curve per model name.

    Raises `InputError` if a model doesn't have the setting, or it isn't a number.
    """
    points = []
    for label, one in models.items():
        source = str(one.folder / "scores.json")
        if over not in one.settings:
            known = ", ".join(one.settings) or "no settings"
            raise InputError(f"{source}: model.settings has no {shown(over)}, which config.over names; it has {known}")
        x = finite_number(source, f"model.settings.{over}", one.settings[over])
        for metric, entry in one.scores.items():
            points.append(Point(one.name or label, over, x, metric, entry.value, entry.low, entry.high))
    return points


@waiting("writing the report", QUIET)
def _write(models: Mapping[str, Scored], workdir: Path, images: int, published: bool, points: Sequence[Point]) -> Path:
    rows = paper.published_rows() if published else []
    metrics = tables.metrics_of(models, published)
    points = with_published(points) if published else points
    grid = _grid(models, images)
    files = [tables.score_table(models, metrics), *([tables.published_table(rows)] if rows else [])]
    files += [
        *tables.group_tables(models),
        tables.fact_table(models),
        *([tables.curve_table(points)] if points else []),
    ]
    for table in files:
        with atomic_file(workdir / table.name) as temporary:
            temporary.write_text(table.text(), encoding="utf-8", newline="")
    return write_template(
        workdir / PAGE,
        "score_report.html.j2",
        models=models,
        metrics=metrics,
        explained={metric: tables.explained(models, metric) for metric in metrics},
        better={metric: tables.better(metric) for metric in metrics},
        published=rows,
        paper={"name": paper.PAPER, "metrics": paper.METRICS, "images": paper.IMAGES, "protocol": paper.PROTOCOL},
        fairness=paper.fairness(),
        costs=[_figure(axes, unit) for axes, unit in _cost_axes(models, metrics, rows)],
        curves=[_figure(axes) for axes in figures_of(points)],
        grid=grid,
        seeds={str(one.settings.get("seed", "unknown")) for one in models.values()},
        groups=_groups(models),
        facts=tables.fact_table(models).rows,
        files={table.name: data_uri(table.text().encode(), "text/csv;charset=utf-8") for table in files},
    )


def _grid(models: Mapping[str, Scored], most: int) -> Grid:
    """The images of those models whose folders are still there."""
    folders: dict[str, Folder] = {}
    notes = []
    for label, one in models.items() if most else ():
        if one.pictures is None:
            notes.append(f"{label}: {one.folder / 'scores.json'} names no folder of images.")
        elif not one.pictures.is_dir():
            notes.append(f"{label}: {one.pictures} isn't there any more.")
        else:
            folders[label] = find_pictures(one.pictures)
    grid = picture_grid(folders, most)
    return dataclasses.replace(grid, notes=[*notes, *grid.notes])


def _groups(models: Mapping[str, Scored]) -> dict[str, list[str]]:
    """Metric -> its groups, in the order in which they come."""
    found: dict[str, dict[str, None]] = {}
    for one in models.values():
        for metric, entries in one.groups.items():
            found.setdefault(metric, {}).update(dict.fromkeys(entries))
    return {metric: list(names) for metric, names in found.items()}


def _cost_axes(
    models: Mapping[str, Scored], metrics: Sequence[str], published: Sequence[paper.Published]
) -> list[tuple[Axes, float]]:
    """Figures of quality over cost for the metrics that were measured, each with the unit of its x axis."""
    found = []
    for metric in [name for name in metrics if any(name in one.scores for one in models.values())][:_MOST_METRICS]:
        for key, x_label, unit in _COSTS:
            measured = [
                PlottedCurve(label, [cost], [entry.value], [entry.low], [entry.high], joined=False)
                for label, one in models.items()
                if (cost := getattr(one, key)) and (entry := one.scores.get(metric))
            ]
            curves = [*measured, *_published_curves(published, metric, key)]
            xs = [x for curve in curves for x in curve.x]
            one_model = len(measured) > 1 and len({one.name for one in models.values()}) == 1
            if not measured or (one_model and len(set(xs)) == 1):
                continue  # a model that was sampled in several ways
            found.append((Axes(x_label, metric, tuple(curves), max(xs) >= _WIDE * min(xs)), unit))
    return found


def _published_curves(rows: Sequence[paper.Published], metric: str, key: str) -> list[PlottedCurve]:
    if metric not in paper.METRICS:
        return []
    families: dict[str, list[tuple[float, float, str]]] = {}
    for row in rows:
        value, cost = row.scores[paper.METRICS.index(metric)], getattr(row, key)
        if row.usual and value is not None and cost is not None:
            families.setdefault(row.family, []).append((cost, value, row.student or "SD"))
    curves = []
    for family, points in families.items():
        x, y, names = zip(*sorted(points), strict=True)
        curves.append(PlottedCurve(family, x, y, names=names, published=True))
    return curves


def _figure(axes: Axes, unit: float = 1.0) -> dict[str, Any]:
    """A figure as a data URI for each theme, and what it shows in words."""
    svgs = {theme: curve_plot(axes.curves, axes.x_label, axes.y_label, theme, axes.log_x, unit) for theme in INK}
    plots = {theme: data_uri(svg.encode(), "image/svg+xml") for theme, svg in svgs.items()}
    return plots | {"title": f"{axes.y_label} over {axes.x_label}", "better": tables.better(axes.y_label)}
