"""Writers of metrics: a CSV table, TensorBoard events, the log."""

import contextlib
import csv
import io
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging
from clu import metric_writers

from bksdm_jax.base.distributed import is_first
from bksdm_jax.base.errors import in_short
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


class _Events(_ScalarWriter):
    """TensorBoard events, of which those that can't be written, since the disk is full, are given up."""

    def __init__(self, folder: Path) -> None:
        self._writer = metric_writers.SummaryWriter(str(folder))

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Writes them at once."""
        try:
            self._writer.write_scalars(step, scalars)
            self._writer.flush()
        except Exception as error:  # TensorFlow's, of many types
            logging.error("TensorBoard: step %d can't be written (%s)", step, in_short(error))


class CsvWriter(_ScalarWriter):
    """Scalars as a CSV table: a row per step, with `step` as the first column.

    When a run continues, rows up to `last_step`, its checkpoint, are kept; later ones will be written again. Rows that
    can't be written, since the disk is full, are kept for the next call.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        self._columns: list[str] | None = None
        self._waiting = ""
        if path.is_file():
            self._keep_until(last_step)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends a row, written to disk at once."""
        if new := self._columns is None:
            self._columns = ["step", *scalars]
        elif new_names := [name for name in scalars if name not in self._columns]:
            self._append("")
            self._widen(new_names)
        row = {"step": step} | {name: f"{float(np.asarray(value)):.9g}" for name, value in scalars.items()}
        buffer = io.StringIO(newline="")
        writer = csv.DictWriter(buffer, self._columns, lineterminator="\n")
        if new:
            writer.writeheader()
        writer.writerow(row)
        self._append(buffer.getvalue())

    def _append(self, text: str) -> None:
        """Appends what is waiting and a text, or nothing of both."""
        self._waiting += text
        size = self._path.stat().st_size if self._path.exists() else 0
        try:
            with self._path.open("ab", buffering=0) as file:
                rest = memoryview(self._waiting.encode())
                while rest:
                    rest = rest[file.write(rest) :]
        except OSError as error:
            with contextlib.suppress(OSError):
                os.truncate(self._path, size)
            logging.error("%s: can't be written (%s); training goes on and tries again", self._path, error.strerror)
        else:
            self._waiting = ""

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
    events = _Events(workdir / "tensorboard" / name)
    return metric_writers.MultiWriter([table, events, LogWriter(name)])
