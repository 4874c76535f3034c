"""The page of a study of criteria: what they said of students, and how good these became; a self-contained file."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from bksdm_jax.base.files import atomic_file
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.pruning.presets import PRESETS
from bksdm_jax.pruning.targets import CRITERIA, RANDOM
from bksdm_jax.reports.figures import INK
from bksdm_jax.reports.pictures import data_uri
from bksdm_jax.reports.scatter import Points, ScatterPanel, scatter_plot
from bksdm_jax.reports.score_tables import better
from bksdm_jax.reports.template import write_template

PAGE, PLOT = "criteria.html", "criteria.svg"
"""The page, and its figure of the first score, on white."""
_WIDE = 20  # largest value over smallest, from which on an axis is logarithmic
_LOSSES = {"loss_task": "task loss on held-out images", "loss_output": "squared error of the output on held-out images"}
_RANDOM, _BY_CRITERION, _LISTS = "random lists", "by a criterion", "other lists"


@waiting("writing the report", QUIET)
def write_criteria_page(results: Mapping[str, Any], workdir: Path) -> Path:
    """Writes `criteria.html` and `criteria.svg` of the results in `criteria.json`, and returns the page's path.

    Raises `InputError` if a file can't be written.
    """
    runs, correlations, outcomes = results["runs"], results["correlations"], results["results"]
    figures = {key: {theme: _figure(runs, correlations, key, theme) for theme in INK} for key in outcomes}
    with atomic_file(workdir / PLOT) as temporary:
        temporary.write_text(_figure(runs, correlations, outcomes[0], "light", transparent=False), encoding="utf-8")
    return write_template(
        workdir / PAGE,
        "criteria_report.html.j2",
        runs=runs,
        correlations=correlations,
        students=results["students"],
        criteria={name: CRITERIA[name] for name in runs[0]["criteria"]},
        losses=_LOSSES,
        outcomes=outcomes,
        before=[key for key in outcomes if f"{key} before" in correlations],
        better={key: better(key) or "lower" for key in outcomes},
        figures={
            key: {theme: data_uri(svg.encode(), "image/svg+xml") for theme, svg in each.items()}
            for key, each in figures.items()
        },
    )


def _kind(run: Mapping[str, Any]) -> str:
    """What a run's student is, for the legend."""
    name = run["student"].partition(":")[0]
    if name in PRESETS:
        return name
    if name in CRITERIA:
        return _BY_CRITERION
    return _RANDOM if name.startswith(RANDOM) else _LISTS


def _figure(
    runs: Sequence[Mapping[str, Any]],
    correlations: Mapping[str, Mapping[str, Mapping[str, float | None]]],
    outcome: str,
    theme: str,
    transparent: bool = True,
) -> str:
    """A score after training over every prediction, for the runs that have all of them."""
    shown = [run for run in runs if outcome in run["after"] and None not in (_value(run, one) for one in correlations)]
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for run in shown:
        groups.setdefault(_kind(run), []).append(run)
    kinds = [
        Points(kind, *([run["after"].get(f"{outcome}{end}") for run in each] for end in ("", "/low", "/high")))
        for kind, each in groups.items()
    ]
    panels = []
    for prediction, found in correlations.items():
        xs = [[_value(run, prediction) for run in each] for each in groups.values()]
        flat = [x for each in xs for x in each]
        log_x = min(flat) > 0 and max(flat) >= _WIDE * min(flat)
        panels.append(ScatterPanel(_x_label(prediction), correlation_text(found[outcome]), xs, log_x))
    return scatter_plot(kinds, panels, outcome, theme, transparent)


def _value(run: Mapping[str, Any], prediction: str) -> float | None:
    if prediction in run["criteria"]:
        return run["criteria"][prediction]
    return run["before"].get(prediction.removesuffix(" before"))


def _x_label(prediction: str) -> str:
    return prediction if prediction.endswith(" before") else f"{prediction}, sum over the removed blocks"


def correlation_text(one: Mapping[str, float | None]) -> str:
    """`rank correlation 0.71 [0.20, 0.93]`."""
    if one["value"] is None:
        return "rank correlation undefined"
    span = "" if one["low"] is None else f" [{one['low']:.2f}, {one['high']:.2f}]"
    return f"rank correlation {one['value']:.2f}{span}"
