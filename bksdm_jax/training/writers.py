"""Where metrics go: a CSV table, TensorBoard events, the log."""

import csv
import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from clu import metric_writers

from bksdm_jax.base.distributed import is_first
from bksdm_jax.base.files import atomic_file


class CsvWriter(metric_writers.MetricWriter):
    """Scalars as `metrics.csv`: a row per step, `step` first, then every name that a row had.

    Rows of a former part of the run stay, up to `last_step`; later ones came after the checkpoint that the run
    continues from, and will be written again.
    """

    def __init__(self, path: Path, last_step: int) -> None:
        self._path = path
        self._columns: list[str] | None = None
        if path.is_file():
            self._keep_until(last_step)

    def write_scalars(self, step: int, scalars: Mapping[str, Any]) -> None:
        """Appends a row and brings it to disk."""
        new = self._columns is None
        if self._columns is None:
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
        """Adds columns, as when a run goes on where another kind of device has more to tell."""
        self._columns += names
        with self._path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.DictReader(file))
        with atomic_file(self._path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            writer = csv.DictWriter(file, self._columns, restval="", lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)

    def _keep_until(self, last_step: int) -> None:
        with self._path.open(encoding="utf-8", newline="") as file:
            rows = list(csv.reader(file))
        if len(rows) < 2 or rows[0][0] != "step":  # cut off while it was begun
            self._path.unlink()
            return
        self._columns = rows[0]
        whole = [row for row in rows[1:] if len(row) == len(rows[0]) and row[0].isdigit() and int(row[0]) <= last_step]
        with atomic_file(self._path) as temporary, temporary.open("w", encoding="utf-8", newline="") as file:
            csv.writer(file, lineterminator="\n").writerows([rows[0], *whole])

    def write_summaries(self, step: int, values: Any, metadata: Any = None) -> None:
        """Has no place in a table."""

    def write_images(self, step: int, images: Any) -> None:
        """Has no place in a table."""

    def write_videos(self, step: int, videos: Any) -> None:
        """Has no place in a table."""

    def write_audios(self, step: int, audios: Any, *, sample_rate: int) -> None:
        """Has no place in a table."""

    def write_texts(self, step: int, texts: Any) -> None:
        """Has no place in a table."""

    def write_histograms(self, step: int, arrays: Any, num_buckets: Any = None) -> None:
        """Has no place in a table."""

    def write_hparams(self, hparams: Any) -> None:
        """Has no place in a table."""

    def flush(self) -> None:
        """Every row is on disk already."""

    def close(self) -> None:
        """Nothing is open."""


def make_writer(workdir: Path, last_step: int, name: str = "") -> metric_writers.MultiWriter:
    """`metrics.csv`, `tensorboard/` and the log at once, of the first process; nothing of others.

    Args:
        workdir: the run's.
        last_step: the step that the run continues from.
        name: of what isn't training: then the files are `NAME.csv` and those in `tensorboard/NAME/`.
    """
    if not is_first():
        return metric_writers.MultiWriter([])
    return metric_writers.MultiWriter(
        [
            CsvWriter(workdir / f"{name or 'metrics'}.csv", last_step),
            metric_writers.SummaryWriter(str(workdir / "tensorboard" / name)),
            metric_writers.LoggingWriter(),
        ]
    )
