"""Several distillations one after the other, with a table and plots of their results."""

import csv
import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import matplotlib
from absl import logging
from matplotlib.figure import Figure

from bksdm_jax.base.distributed import barrier, is_first
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import atomic_file, read_json
from bksdm_jax.base.locks import one_run
from bksdm_jax.base.workdir import claim, require_same
from bksdm_jax.data.tables import write_table
from bksdm_jax.experiments.criteria import require_scores, write_criteria
from bksdm_jax.experiments.sweep_scores import last_scores, score_points
from bksdm_jax.reports.score_curves import write_points, write_score_plot
from bksdm_jax.tasks.distill.config import MAY_CHANGE, DistillConfig
from bksdm_jax.tasks.distill.inputs import open_inputs
from bksdm_jax.tasks.distill.task import distill

TABLE, PLOT = "sweep.csv", "sweep.png"
"""Files of a sweep's workdir."""
CURVES, CURVES_PLOT = "curves.csv", "curves.svg"
"""More of them, if runs have scores: points for `launch.report`, and a figure."""
_LOSSES = ("loss_task", "loss_output", "loss_feature")
_WRITTEN = ("format", "save_dtype", "save_weights", "safety_checker")  # settings of the final model
_COLUMNS = ("run", "status", "updates", *_LOSSES, "held_out_loss", "held_out_loss_task")


@one_run(is_first)
def sweep(runs: Mapping[str, DistillConfig], workdir: Path) -> Path | None:
    """Starts or continues every run in a folder of its name in `workdir`, and writes `TABLE` and `PLOT`.

    Where runs have `evaluators`, the table has their last scores, and `CURVES` and `CURVES_PLOT` have them over updates
    and over the learning rate, batch size or number of pairs in which runs differ, beside the paper's. Where all runs
    name one file of block scores, `criteria.html` compares what these said of each student with how good it became.

    A run that fails is noted in the table and the sweep goes on; with several processes it ends the sweep, since the
    others may not know of the error. Later calls may add runs to a workdir.

    Returns:
        the table, or None if interrupted (the same call continues).

    Raises:
        InputError: there are no runs, a run's setting, teacher or data can't be used, or `workdir` belongs to something
            else (all found before the first run).
    """
    if not runs:
        raise InputError("runs: none; choose a sweep, such as configs/sweep.py:shapes,rates, or list runs")
    for name, config in runs.items():
        try:
            open_inputs(config)
        except InputError as error:
            raise InputError(f"{name}: {error}") from error
    require_scores(runs)
    if is_first():
        _claim(workdir, runs)
    barrier("claimed")
    problems: dict[str, str] = {}
    for number, (name, config) in enumerate(runs.items(), start=1):
        logging.info("== %d of %d, %s", number, len(runs), name)
        if _is_made(workdir / name, config):
            continue
        try:
            if distill(config, workdir / name) is None:
                return None
        except InputError as error:
            if jax.process_count() > 1:
                raise
            logging.error("%s: %s", name, error)
            problems[name] = str(error)
        _write(runs, workdir, problems)
    _write(runs, workdir, problems)
    if is_first():
        write_criteria(runs, {name for name, config in runs.items() if _is_made(workdir / name, config)}, workdir)
    barrier("written")
    return workdir / TABLE


def read_sweep(path: Path) -> list[dict[str, str]]:
    """The rows of a sweep's table, by column."""
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def _claim(workdir: Path, runs: Mapping[str, DistillConfig]) -> None:
    """Records the runs in `workdir`, and keeps the record of earlier ones."""
    record: dict[str, Any] = {"program": "launch.sweep"}  # distinguishes it from a run's own workdir
    for name, config in runs.items():
        record |= {f"{name}.{key}": value for key, value in dataclasses.asdict(config).items()}
    former: dict[str, Any] = read_json(workdir / "config.json") if (workdir / "config.json").is_file() else {}
    other = (former.keys() ^ record.keys()) - {"program"}
    require_same(workdir, record, other | {key for key in record if key.rpartition(".")[2] in MAY_CHANGE})
    claim(workdir, former | record)


def _is_made(folder: Path, config: DistillConfig) -> bool:
    """Whether a run made all its updates, and its student is written as configured now."""
    made = _history(folder / "metrics.csv")
    if not (folder / "model").is_dir() or not made or int(made[-1]["step"]) != config.steps:
        return False
    written = read_json(folder / "config.json")
    return all(written.get(key) == getattr(config, key) for key in _WRITTEN)


def _write(runs: Mapping[str, DistillConfig], workdir: Path, problems: Mapping[str, str]) -> None:
    """Writes the table and the plot; rows of earlier calls' runs are kept."""
    if not is_first():
        return
    histories = {name: _history(workdir / name / "metrics.csv") for name in runs}
    others = [row for row in _history(workdir / TABLE) if row["run"] not in runs]
    scores = {name: last_scores(workdir / name) for name in (*runs, *(row["run"] for row in others))}
    columns = tuple(dict.fromkeys(column for own in scores.values() for column in own))
    rows, finished = [], set()
    for name, config in runs.items():
        last = histories[name][-1] if histories[name] else {}
        held_out = (_history(workdir / name / "validation.csv") or [{}])[-1]
        status = problems.get(name, "under way" if last else "not begun")
        if _is_made(workdir / name, config):
            status = "done"
            finished.add(name)
        values = [last.get(key, "") for key in ("step", *_LOSSES)]
        rows.append([name, status, *values, held_out.get("loss", ""), held_out.get("loss_task", "")])
    rows += [[row[key] for key in _COLUMNS] for row in others]
    scored = [[*row, *(scores[row[0]].get(column, "") for column in columns)] for row in rows]
    write_table(workdir / TABLE, (*_COLUMNS, *columns), scored)
    histories |= {row["run"]: _history(workdir / row["run"] / "metrics.csv") for row in others}
    _plot({name: rows for name, rows in histories.items() if rows}, workdir / PLOT)
    if points := score_points(runs, finished, workdir):
        write_points(workdir / CURVES, points)
        write_score_plot(workdir / CURVES_PLOT, points)


def _history(path: Path) -> list[dict[str, str]]:
    """The complete rows of a table; none if it doesn't exist."""
    rows = read_sweep(path) if path.is_file() else []
    return [row for row in rows if None not in row.values()]  # a kill may have cut off the last one


def _plot(histories: Mapping[str, list[dict[str, str]]], path: Path) -> None:
    """The task loss of every run over its updates: the one term that all runs have."""
    figure = Figure(figsize=(8, 4.5 + 0.2 * len(histories)), layout="constrained", dpi=120)
    axes = figure.add_subplot()
    styles = matplotlib.color_sequences["tab10"]
    for index, (name, rows) in enumerate(histories.items()):
        steps, losses = ([float(row[key]) for row in rows] for key in ("step", "loss_task"))
        axes.plot(steps, losses, color=styles[index % len(styles)], label=name, linestyle="-" if index < 10 else "--")
    axes.set_yscale("log")
    axes.set_xlabel("optimiser updates")
    axes.set_ylabel("task loss")
    axes.grid(alpha=0.25)
    if histories:
        figure.legend(frameon=False, fontsize=9, loc="outside upper left")
    with atomic_file(path) as temporary:
        figure.savefig(temporary, format="png")
