"""Writers of metrics: a CSV table, TensorBoard events, the log."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from clu import metric_writers

from bksdm_jax.base.distributed import is_first
from bksdm_jax.base.files import atomic_file

_IN_LOG = ("grad_norm", "learning_rate", "images_per_second", "mfu", "data_wait", "host_memory")
_MOST_IN_LOG = 8


class _ScalarWriter(metric_writers.MetricWriter):
    """Ignores everything but scalars, which are on their way at once."""

    def _ignore(self, *_: Any, **__: Any) -> None:
        """Nothing to do."""

    write_summaries = write_images = write_videos = write_audios = write_texts = write_histograms = _ignore
    write_hparams = flush = close = _ignore


class LogWriter(_ScalarWriter):
    """Eight scalars of a step in one line of the log: the losses, then what tells how a run is doing.

    clu's `LoggingWriter` logs all, of which a distillation has forty. `name` begins the line, if it isn't empty.
    """

    def __init__(self, name: str) -> None:
        self._name = name

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Logs them at once."""
        wanted = [*(name for name in scalars if name.startswith("loss")), *_IN_LOG]
        chosen = [name for name in wanted if name in scalars] or [name for name in scalars if "/" not in name]
        values = ", ".join(f"{name} {float(np.asarray(scalars[name])):.4g}" for name in chosen[:_MOST_IN_LOG])
        logging.info("%sstep %d: %s", f"{self._name} at " if self._name else "", step, values)


class CsvWriter(_ScalarWriter):
    """Scalars as a CSV table: a row per step, with `step` as the first column.

    When a run continues, rows up to `last_step`, its checkpoint, are kept; later ones will be written again.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        self._columns: list[str] | None = None
        if path.is_file():
            self._keep_until(last_step)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends a row, written to disk at once."""
        if new := self._columns is None:
            self._columns = ["step", *scalars]
        elif new_names := [name for name in scalars if name not in self._columns]:
            self._widen(new_names)
        row = {"step": step} | {name: f"{float(np.asarray(value)):.9g}" for name, value in scalars.items()}
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, self._columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
        with self._path.open("a", encoding="utf-8", newline="") as file:
            file.write(buffer.getvalue())

    def _widen(self, names: list[str]) -> None:
        """Adds columns, as when a run continues on a device that reports more metrics."""
        with self._path.open(encoding="utf-8", newline="") as file:
            rows = [row + [""] * len(names) for row in csv.reader(file)]
        self._columns += names
        self._replace([self._columns, *rows[1:]])

    def _keep_until(self, last_step: int) -> None:
        with self._path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        if len(rows) < 2 or rows[0][0] != "step":  # killed while writing the first row
            self._path.unlink()
            return
        self._columns = rows[0]
        whole = [row for row in rows[1:] if len(row) == len(rows[0]) and row[0].isdigit() and int(row[0]) <= last_step]
        self._replace([rows[0], *whole])

    def _replace(self, rows: list[list[str]]) -> None:
        with atomic_file(self._path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows(rows)


def make_writer(workdir: Path, last_step: int, name: str = "") -> metric_writers.MultiWriter:
    """Writes to `metrics.csv`, `tensorboard/` and, in part, the log in the first process, and nothing in the others.

    The run continues from `last_step`. If `name` is an evaluator's, the files are `NAME.csv` and `tensorboard/NAME/`.
    """
    if not is_first():
        return metric_writers.MultiWriter([])
    table = CsvWriter(workdir / f"{name or 'metrics'}.csv", last_step)
    events = metric_writers.SummaryWriter(str(workdir / "tensorboard" / name))
    return metric_writers.MultiWriter([table, events, LogWriter(name)])
