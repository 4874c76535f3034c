"""The scores of a sweep's runs: over their updates, and over what the runs were made to differ in."""

import dataclasses
import json
import operator
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bksdm_jax.reports.curves import Point
from bksdm_jax.reports.published import IMAGES
from bksdm_jax.reports.score_curves import points_of, points_over_updates, read_rows, with_published
from bksdm_jax.tasks.distill.config import MAY_CHANGE, DistillConfig
from bksdm_jax.training.scoring import SCORES

VARIED = {"learning_rate": "optimizer.learning_rate", "pairs": "examples", "batch_size": "batch_size"}
"""Quantities of curves -> the keys of a run's settings."""


def last_scores(run: Path) -> dict[str, str]:
    """The last row of a run's `scores.csv`, without its step; empty: it has none."""
    rows = read_rows(run / f"{SCORES}.csv")
    return {name: value for name, value in rows[-1].items() if name != "step"} if rows else {}


def score_points(runs: Mapping[str, DistillConfig], finished: set[str], workdir: Path) -> list[Point]:
    """The scores of all runs over their updates, and the last ones of finished runs over each quantity of `VARIED`.

    Runs that differ in nothing but a quantity make a curve over it, with the paper's points beside it if they were
    scored with as many images as the paper's.
    """
    over_updates = [point for name in runs for point in points_over_updates(workdir / name / f"{SCORES}.csv", name)]
    varied: list[Point] = []
    for x_name, key in VARIED.items():
        groups: dict[str, dict[str, float]] = {}
        for name in sorted(finished & runs.keys(), key=list(runs).index):
            x = float(operator.attrgetter(key)(runs[name]))
            if x:  # `examples` 0 is all of them, a number that settings don't have
                groups.setdefault(settings_without(runs[name], key), {})[name] = x
        for names in groups.values():
            if len(set(names.values())) > 1:
                label = _label(runs[next(iter(names))])
                for name, x in names.items():
                    varied += points_of(last_scores(workdir / name), label, x_name, x)
    counts = {config.scoring.images for config in runs.values()}
    return [*over_updates, *(with_published(varied) if counts == {IMAGES} else varied)]


def settings_without(config: DistillConfig, *keys: str) -> str:
    """All settings but `keys` that decide a run's weights, as text."""
    settings: dict[str, Any] = dataclasses.asdict(config)
    for key in keys:
        place = settings
        *parents, last = key.split(".")
        for parent in parents:
            place = place[parent]
        del place[last]
    own = ("steps", "block_scores")  # which runs of one table may differ in
    kept = {name: value for name, value in settings.items() if name not in MAY_CHANGE or name in own}
    return json.dumps(kept, sort_keys=True)


def _label(config: DistillConfig) -> str:
    return f"{config.generation or Path(config.teacher).name}: {config.student}"
