"""Whether criteria keep their word: what they say of students before training, and how good these are afterwards."""

import collections
import dataclasses
import math
from collections.abc import Hashable, Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from absl import logging

from bksdm_jax.analysis.agreement import rank_correlation
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.base.paths import MOST_READ
from bksdm_jax.cost.counts import Cost, unet_cost
from bksdm_jax.experiments.sweep_scores import settings_without
from bksdm_jax.models.unet_table import UNetConfig, replaceable
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pruning.block_scores import read_all_scores, removed_from
from bksdm_jax.pruning.removal import RemovalPlan, plan_removal
from bksdm_jax.pruning.targets import read_target
from bksdm_jax.reports.criteria_page import write_criteria_page
from bksdm_jax.reports.score_curves import read_rows
from bksdm_jax.reports.score_tables import better, measured
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.training.scoring import SCORES

RESULTS = "criteria.json"
FEWEST = 5
"""Different students that are needed for a correlation."""
_LOSSES = ("loss_task", "loss_output")
_NEAR = 0.1  # of the median number of parameters: students that are compared


@dataclasses.dataclass(frozen=True)
class _Student:
    """A finished run: its row in `criteria.json`, and what is the same for trainings of one student."""

    row: dict[str, Any]
    identity: Hashable
    settings: str


def write_criteria(runs: Mapping[str, DistillConfig], finished: set[str], workdir: Path) -> Path | None:
    """Writes `criteria.json` and its page for the finished ones of these runs, whose block scores are in one file.

    Of each run: the sum of its removed blocks' scores by every criterion; the losses on held-out images and the scores
    of its images, before the first update and after the last. Of each of these predictions and each result: Spearman's
    rank correlation over students of about the same size that were trained alike, 1 if the prediction ranks them as
    training does.

    Returns:
        the page; None where runs don't name one file of block scores, or there is too little to compare (logged).

    Raises:
        InputError: the scores or a run's files can't be used, or the page can't be written.
    """
    if not compares_criteria(runs):
        return None
    first = next(iter(runs.values()))
    teacher = find_model(first.source(first.teacher)).architectures.denoiser
    scores = read_all_scores(teacher, first.block_scores)
    students = [
        _student(name, config, teacher, scores, workdir / name) for name, config in runs.items() if name in finished
    ]
    compared = _compared(students)
    results = shared_results([one.row for one in compared])
    if len({one.identity for one in compared}) < FEWEST or not results:
        logging.warning(
            "criteria: nothing to compare; that needs %d finished students of about the same size that were trained "
            "alike, with held-out images or evaluators",
            FEWEST,
        )
        return None
    for one in students:
        one.row["compared"] = one in compared
    found: dict[str, Any] = {"runs": [one.row for one in students], "results": results}
    found |= {"students": len({one.identity for one in compared}), "correlations": _correlations(compared, results)}
    write_json(workdir / RESULTS, found)
    return write_criteria_page(found, workdir)


def compares_criteria(runs: Mapping[str, DistillConfig]) -> bool:
    """Whether all runs name one file of block scores, of one teacher."""
    names = {(config.block_scores, config.teacher) for config in runs.values()}
    return len(names) == 1 and bool(names.pop()[0])


def require_scores(runs: Mapping[str, DistillConfig]) -> None:
    """Raises `InputError` if the runs are to be compared by block scores that can't be used."""
    if compares_criteria(runs):
        config = next(iter(runs.values()))
        read_all_scores(find_model(config.source(config.teacher)).architectures.denoiser, config.block_scores)


def _student(
    name: str, config: DistillConfig, teacher: UNetConfig, scores: Mapping[str, Mapping[str, float]], run: Path
) -> _Student:
    plan = plan_removal(teacher, _trained_without(config, teacher, run))
    removed = _missing(plan)
    cost = sum(unet_cost(plan.student, plan.student.sample_size or 64).values(), Cost())
    before, after = _measured(run, config.steps)
    sums = {key: math.fsum(each[block] for block in removed) for key, each in scores.items()}
    row = {"name": name, "student": config.student, "seed": config.seed, "removed": list(plan.removed)}
    row |= {"parameters": cost.parameters, "macs": cost.macs, "criteria": sums, "before": before, "after": after}
    return _Student(row, (plan.student, plan.blocks), settings_without(config, "student", "seed", "block_scores"))


def _trained_without(config: DistillConfig, teacher: UNetConfig, run: Path) -> tuple[str, ...]:
    """The removed blocks of a student as it was trained: block scores may have changed since."""
    if read_target(config.student):
        return tuple(read_json(run / "config.json", MOST_READ)["removed"])
    return removed_from(teacher, config.student, config.block_scores)


def _missing(plan: RemovalPlan) -> list[str]:
    left = {source for _, source in plan.blocks}
    return [block for block in replaceable(plan.teacher) if block not in left]


def _measured(run: Path, steps: int) -> tuple[dict[str, float], dict[str, float]]:
    """What was measured before the first update, and after the last."""
    found: tuple[dict[str, float], dict[str, float]] = {}, {}
    for table, keys in (("validation", _LOSSES), (SCORES, None)):
        rows = {row.get("step"): row for row in read_rows(run / f"{table}.csv")}
        for part, step in zip(found, (0, steps), strict=True):
            row = rows.get(str(step), {})
            try:
                part |= {key: float(row[key]) for key in keys or row if key != "step" and row.get(key)}
            except ValueError as error:
                raise InputError(f"{run / table}.csv: step {step}: {error}") from error
    return found


def _compared(students: Sequence[_Student]) -> list[_Student]:
    """Those that were trained alike, the largest such group, and have about the median size."""
    if not students:
        return []
    (usual, _), *_ = collections.Counter(one.settings for one in students).most_common(1)
    alike = [one for one in students if one.settings == usual]
    middle = median(one.row["parameters"] for one in alike)
    return [one for one in alike if abs(one.row["parameters"] - middle) <= _NEAR * middle]


def shared_results(rows: Sequence[Mapping[str, Any]], part: str = "after") -> list[str]:
    """What was measured of all rows, scores first."""
    shared = [key for key in measured(rows[0][part] if rows else ()) if all(key in row[part] for row in rows)]
    return [*(key for key in shared if key not in _LOSSES), *(key for key in shared if key in _LOSSES)]


def _correlations(
    students: Sequence[_Student], results: Sequence[str]
) -> dict[str, dict[str, dict[str, float | None]]]:
    """Prediction -> result -> `value`, `low`, `high`; None where it isn't defined.

    Trainings of the same student count once, with their mean.
    """
    groups: dict[Hashable, list[Mapping[str, Any]]] = {}
    for one in students:
        groups.setdefault(one.identity, []).append(one.row)
    rows = [one.row for one in students]
    predictions = {key: ("criteria", key, -1) for key in rows[0]["criteria"]}
    predictions |= {f"{key} before": ("before", key, _sign(key)) for key in shared_results(rows, "before")}
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for prediction, (part, key, sign) in predictions.items():
        first = [sign * fmean(row[part][key] for row in same) for same in groups.values()]
        for result in results:
            second = [_sign(result) * fmean(row["after"][result] for row in same) for same in groups.values()]
            numbers = dataclasses.asdict(rank_correlation(first, second)).items()
            own = {name: value if math.isfinite(value) else None for name, value in numbers}
            found.setdefault(prediction, {})[result] = own
    return found


def _sign(key: str) -> int:
    """-1 where lower is better."""
    return 1 if better(key) == "higher" else -1
