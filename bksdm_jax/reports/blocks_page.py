"""The page of an analysis of a teacher's blocks, a single self-contained file."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bksdm_jax.base.files import read_json
from bksdm_jax.base.paths import MOST_READ
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.pruning.targets import CRITERIA
from bksdm_jax.reports.bars import Bar, bar_plot
from bksdm_jax.reports.figures import INK
from bksdm_jax.reports.pictures import Grid, data_uri, find_pictures, picture_grid
from bksdm_jax.reports.score_tables import better
from bksdm_jax.reports.template import write_template

PAGE, IMAGES = "blocks.html", "images"
"""The page, and the folder of a few images of each removal, in the workdir of an analysis."""
COLUMNS = 6
"""Images of each removal in the grid."""
WHOLE = "nothing"
"""The name of the removal of no block."""
_WIDE = 1000  # largest score over smallest, from which on the axis is logarithmic
_UNSHOWN = ("texts", "data_facts", "teacher_sha256")
_GROUPS = {"blocks": "without single blocks", "groups": "without several blocks", "skips": "without skip connections"}


@waiting("writing the report", QUIET)
def write_blocks_page(results: Mapping[str, Any], workdir: Path) -> Path:
    """Writes `blocks.html` of the results in `blocks.json`, and returns its path.

    Raises `InputError` if an image can't be read or the page can't be written.
    """
    config = read_json(workdir / "config.json", MOST_READ)
    order = sorted(results["blocks"], key=lambda block: results["blocks"][block]["number"])
    found = results.get("removals", {})
    names = sorted(found, key=lambda name: _place(found[name], order))
    metrics = sorted(found[WHOLE]["scores"]) if names else []
    grid = _grid(workdir / IMAGES, names, config.get("texts") or [])
    return write_template(
        workdir / PAGE,
        "blocks_report.html.j2",
        teacher=results["teacher"],
        blocks={block: results["blocks"][block] for block in order},
        scores={name: results["scores"][name] for name in CRITERIA if name in results["scores"]},
        meanings=CRITERIA,
        ranks=_ranks(results["scores"], order),
        agreement=results.get("agreement", {}),
        criteria=[_criterion(name, results, order) for name in CRITERIA if name in results["scores"]],
        figures={metric: _of_metric(metric, found, names) for metric in metrics},
        removals={name: found[name]["scores"] for name in names},
        metrics=metrics,
        better={metric: better(metric) for metric in metrics},
        grid=grid,
        settings=_settings(config),
    )


def kind_of(removal: Mapping[str, Any]) -> str:
    """`skips`, `groups` or `blocks`: what a removal leaves out."""
    if removal.get("skips"):
        return "skips"
    return "groups" if len(removal["blocks"]) > 1 else "blocks"


def _place(removal: Mapping[str, Any], order: list[str]) -> tuple[int, ...]:
    """For sorting: nothing, blocks, groups, skips, each in the order of the forward pass."""
    gone = removal.get("skips") or removal["blocks"]
    kind = list(_GROUPS).index(kind_of(removal))
    return (kind, len(gone) if kind == 2 else 0, *(order.index(block) for block in gone)) if gone else ()


def _ranks(scores: Mapping[str, Mapping[str, float]], order: list[str]) -> dict[str, dict[str, int]]:
    ranks = {}
    for name, each in scores.items():
        ranked = sorted(order, key=lambda block: each[block])
        ranks[name] = {block: place for place, block in enumerate(ranked, start=1)}
    return ranks


def _criterion(name: str, results: Mapping[str, Any], order: list[str]) -> dict[str, str]:
    """The bars of a criterion's scores."""
    scores, facts = results["scores"][name], results["blocks"]
    bars = [Bar(_starred(block, facts[block]["interpolated"]), scores[block], _part(block)) for block in order]
    low, high = min(bar.value for bar in bars), max(bar.value for bar in bars)
    return _figure(bars, name, f"{name}: {CRITERIA[name]}", log=low > 0 and high >= _WIDE * low)


def _of_metric(metric: str, found: Mapping[str, Any], order: list[str]) -> list[dict[str, str]]:
    """The bars of a metric: how far each removal's score is from the whole teacher's; `order`: of the removals."""
    whole = found[WHOLE]["scores"][metric]
    made = []
    for kind, title in _GROUPS.items():
        names = [name for name in order if name != WHOLE and kind_of(found[name]) == kind]
        bars = [_bar(name, found[name], metric, whole["value"]) for name in names]
        if bars:
            ends = [whole[end] for end in ("low", "high")]
            noise = None if None in ends else (ends[0] - whole["value"], ends[1] - whole["value"])
            shaded = " Shaded: the teacher's own 95% interval." if noise else ""
            text = f"{metric} {title}: change from the whole teacher.{shaded}"
            made.append(_figure(bars, f"change of {metric}", text, noise))
    return made


def _bar(name: str, removal: Mapping[str, Any], metric: str, whole: float) -> Bar:
    entry = removal["scores"][metric]
    low, high = (None if entry[end] is None else entry[end] - whole for end in ("low", "high"))
    return Bar(name, entry["value"] - whole, _part(name) if kind_of(removal) == "blocks" else "", low, high)


def _starred(block: str, interpolated: bool) -> str:
    return f"{block}*" if interpolated else block


def _part(block: str) -> str:
    return "transformer" if ".attentions." in block else "ResNet"


def _figure(
    bars: list[Bar], y_label: str, title: str, noise: tuple[float, float] | None = None, log: bool = False
) -> dict[str, str]:
    svgs = {theme: bar_plot(bars, y_label, theme, noise, log) for theme in INK}
    return {theme: data_uri(svg.encode(), "image/svg+xml") for theme, svg in svgs.items()} | {"title": title}


def _grid(images: Path, names: list[str], captions: list[str]) -> Grid:
    """The first images of every removal that has some."""
    folders = {name: find_pictures(images / name) for name in names if (images / name).is_dir()}
    grid = picture_grid(folders, COLUMNS)
    numbers = [int(name) for name in grid.names if name.isdecimal()]
    return Grid(grid.names, [captions[i] if i < len(captions) else "" for i in numbers], grid.rows, grid.notes)


def _settings(config: Mapping[str, Any]) -> dict[str, Any]:
    """The settings, those of groups as `group.key`, without the captions and hashes."""
    flat: dict[str, Any] = {}
    for key, value in config.items():
        if key in _UNSHOWN:
            continue
        flat |= {f"{key}.{inner}": one for inner, one in value.items()} if isinstance(value, dict) else {key: value}
    return {key: value for key, value in flat.items() if value not in ("", [], None)}
