"""Whether criteria keep their word: what they say of students before training, and how good these are afterwards."""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import fmean, median
from typing import Any

from bksdm_jax.analysis.agreement import rank_correlation
from bksdm_jax.base.files import write_json
from bksdm_jax.cost.counts import Cost, unet_cost
from bksdm_jax.models.unet_table import UNetConfig, replaceable
from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pruning.block_scores import read_all_scores, removed_from
from bksdm_jax.pruning.removal import RemovalPlan, plan_removal
from bksdm_jax.reports.criteria_page import write_criteria_page
from bksdm_jax.reports.score_curves import read_rows
from bksdm_jax.reports.score_tables import better
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.training.scoring import SCORES

RESULTS = "criteria.json"
_LOSSES = ("loss_task", "loss_output")
_NEAR = 0.1  # of the median number of parameters: students that are compared


def write_criteria(runs: Mapping[str, DistillConfig], finished: set[str], workdir: Path) -> Path | None:
    """Writes `criteria.json` and its page for the finished runs of a sweep.

    Of each run: the sum of its removed blocks' scores by every criterion in the file `block_scores`; the losses on
    held-out images and the scores of its images, before the first update and after the last. Of each of these
    predictions and each score after: Spearman's rank correlation over students of about the same size, 1 if the
    prediction ranks them as training does.

    Returns:
        the page; None where a run has no block scores, or fewer than three runs of different students are finished.
    """
    if not compares_criteria(runs):
        return None
    chosen = {name: config for name, config in runs.items() if name in finished}
    config = next(iter(runs.values()))
    teacher = find_model(config.source(config.teacher)).architectures.denoiser
    scores = read_all_scores(teacher, config.block_scores)
    rows = [_row(name, config, teacher, scores, workdir / name) for name, config in chosen.items()]
    if len({tuple(row["removed"]) for row in rows}) < 3:
        return None
    middle = median(row["parameters"] for row in rows)
    for row in rows:
        row["compared"] = abs(row["parameters"] - middle) <= _NEAR * middle
    results = {"runs": rows, "correlations": _correlations([row for row in rows if row["compared"]])}
    write_json(workdir / RESULTS, results)
    return write_criteria_page(results, workdir)


def compares_criteria(runs: Mapping[str, DistillConfig]) -> bool:
    """Whether all runs name one file of block scores, of one teacher."""
    names = {(config.block_scores, config.teacher) for config in runs.values()}
    return len(names) == 1 and bool(names.pop()[0])


def require_scores(runs: Mapping[str, DistillConfig]) -> None:
    """Raises `InputError` if the runs are to be compared by block scores that can't be used."""
    if compares_criteria(runs):
        config = next(iter(runs.values()))
        read_all_scores(find_model(config.source(config.teacher)).architectures.denoiser, config.block_scores)


def _row(
    name: str, config: DistillConfig, teacher: UNetConfig, scores: Mapping[str, Mapping[str, float]], run: Path
) -> dict[str, Any]:
    plan = plan_removal(teacher, removed_from(teacher, config.student, config.block_scores))
    removed = _removed(plan)
    cost = _cost(plan.student)
    before, after = _measured(run)
    sums = {key: math.fsum(each[block] for block in removed) for key, each in scores.items()}
    facts = {"name": name, "student": config.student, "seed": config.seed, "removed": removed}
    facts |= {"parameters": cost.parameters, "macs": cost.macs}
    return facts | {"criteria": sums, "before": before, "after": after}


def _removed(plan: RemovalPlan) -> list[str]:
    left = {source for _, source in plan.blocks}
    return [block for block in replaceable(plan.teacher) if block not in left]


def _cost(unet: UNetConfig) -> Cost:
    return sum(unet_cost(unet, unet.sample_size or 64).values(), Cost())


def _measured(run: Path) -> tuple[dict[str, float], dict[str, float]]:
    """What was measured before the first update, and after the last; the keys of both are those of the first."""
    before: dict[str, float] = {}
    after: dict[str, float] = {}
    for table, keys in (("validation", _LOSSES), (SCORES, None)):
        rows = read_rows(run / f"{table}.csv")
        if rows:
            names = [key for key in keys or rows[0] if key in rows[0] and key != "step"]
            after |= {key: float(rows[-1][key]) for key in names if rows[-1][key]}
            if rows[0]["step"] == "0":
                before |= {key: float(rows[0][key]) for key in names if rows[0][key]}
    return before, after


def _correlations(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, dict[str, float | None]]]:
    """Prediction -> what is measured afterwards -> `value`, `low`, `high`; None where it isn't defined.

    Runs of the same student count once, with their mean.
    """
    students: dict[tuple[str, ...], list[Mapping[str, Any]]] = {}
    for row in rows:
        students.setdefault(tuple(row["removed"]), []).append(row)
    predictions = dict.fromkeys(rows[0]["criteria"], ("criteria", -1)) if rows else {}
    predictions |= {f"{key} before": ("before", _sign(key)) for key in _outcomes(rows, "before")}
    found: dict[str, dict[str, dict[str, float | None]]] = {}
    for prediction, (part, sign) in predictions.items():
        key = prediction.removesuffix(" before")
        first = [sign * fmean(row[part][key] for row in same) for same in students.values()]
        for outcome in _outcomes(rows, "after"):
            second = [_sign(outcome) * fmean(row["after"][outcome] for row in same) for same in students.values()]
            numbers = dataclasses.asdict(rank_correlation(first, second)).items()
            own = {name: value if math.isfinite(value) else None for name, value in numbers}
            found.setdefault(prediction, {})[outcome] = own
    return found


def _outcomes(rows: Sequence[Mapping[str, Any]], part: str) -> list[str]:
    """What was measured in all rows, without the ends of intervals."""
    shared = [key for key in (rows[0][part] if rows else ()) if all(key in row[part] for row in rows)]
    return [key for key in shared if not key.endswith(("/low", "/high"))]


def _sign(key: str) -> int:
    """-1 where lower is better."""
    return 1 if better(key) == "higher" else -1
