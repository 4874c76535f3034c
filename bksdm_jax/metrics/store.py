"""A feature of images on disk, gathered batch by batch, so that an interrupted pass continues."""

import contextlib
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import atomic_file, make_folder, read_json, write_json
from bksdm_jax.base.finite import find_non_finite
from bksdm_jax.metrics.sums import FeatureSums, read_sums, write_sums

_PROGRESS = "progress.json"
_ROWS = "rows.bin"


class Need(NamedTuple):
    """An extractor's feature: its sums over all images, or (`kept`) its values for each image."""

    extractor: str
    feature: str
    kept: bool = False


class FeatureStore:
    """A feature in a folder: a file of rows, or running sums.

    Attributes:
        done: images whose feature is stored, which includes those that were passed over.
        skipped: numbers of the images that were passed over, ascending.
    """

    def __init__(self, folder: Path, kept: bool, record: Mapping[str, Any]) -> None:
        """Continues what is in the folder, if it was made under the same record; else starts over.

        Args:
            folder: created if missing.
            kept: whether the values for each image are stored, and not their sums.
            record: plain data on which the feature depends.

        Raises:
            InputError: files in the folder are damaged.
        """
        self._folder, self._sums = make_folder(folder), None if kept else FeatureSums()
        self._record = json.loads(json.dumps({**record, "kept": kept}))
        self._layout: dict[str, Any] | None = None
        self.done, self.skipped = 0, []
        progress = self._progress()
        if progress is None:
            self._clear()
        else:
            self._resume(progress)

    def add(self, rows: np.ndarray, skipped: Sequence[int] = ()) -> None:
        """Adds the feature of the next images, [B, ...]; `skipped`: numbers of images in between without any.

        Raises `InputError` if it can't be written; then this store can't be used any more.
        """
        if len(rows) and self._sums is None:
            path = self._folder / _ROWS
            try:
                with path.open("ab") as file:
                    file.write(np.ascontiguousarray(rows).data)
            except OSError as error:
                raise InputError(f"{path}: can't be written ({error.strerror or error})") from error
            self._layout = {"dtype": rows.dtype.name, "shape": list(rows.shape[1:])}
        elif len(rows) and self._sums is not None:
            self._sums.add(rows)
        self.done += len(rows) + len(skipped)
        self.skipped += skipped

    def commit(self) -> None:
        """Makes what was added so far permanent."""
        former, name = set(self._folder.glob("*.npz")), f"sums.{self.done}.npz"
        if self._sums is not None:
            with atomic_file(self._folder / name) as temporary:
                write_sums(temporary, self._sums)
        progress = {"record": self._record, "done": self.done, "skipped": self.skipped, "layout": self._layout}
        write_json(self._folder / _PROGRESS, progress)
        for path in former - {self._folder / name}:
            path.unlink()

    def read(self) -> np.ndarray | FeatureSums:
        """Everything added so far: rows [N, ...] as a memory-mapped array, or sums.

        Raises `InputError` if they aren't finite.
        """
        if self._sums is not None:
            self._require_finite(mean=self._sums.mean, scatter=self._sums.scatter)
            return self._sums
        count = self.done - len(self.skipped)
        if self._layout is None or not count:
            return np.zeros((0,), np.float32)
        shape = (count, *self._layout["shape"])
        rows = np.memmap(self._folder / _ROWS, self._layout["dtype"], mode="r", shape=shape)
        self._require_finite(rows=rows)
        return rows

    def _require_finite(self, **arrays: np.ndarray | float) -> None:
        for name, count in find_non_finite({name: np.asarray(array) for name, array in arrays.items()}):
            raise InputError(
                f"{self._folder}: {count:,} of {np.size(arrays[name]):,} numbers of the features' {name} aren't "
                "finite; delete this folder, they are gathered again"
            )

    def _progress(self) -> dict[str, Any] | None:
        """What is recorded in the folder, if it belongs to this record."""
        path = self._folder / _PROGRESS
        if not path.is_file():
            return None
        with contextlib.suppress(InputError, KeyError, TypeError):
            progress = read_json(path)
            whole = {"skipped", "layout"} <= progress.keys()
            return progress if whole and progress["record"] == self._record and progress["done"] >= 0 else None
        return None

    def _resume(self, progress: Mapping[str, Any]) -> None:
        self.done, self.skipped, self._layout = progress["done"], progress["skipped"], progress["layout"]
        if self._sums is not None:
            self._sums = read_sums(self._folder / f"sums.{self.done}.npz")
        elif self._layout is None:
            (self._folder / _ROWS).unlink(missing_ok=True)  # added after the last commit
        else:
            count = self.done - len(self.skipped)
            size = count * int(np.prod(self._layout["shape"])) * np.dtype(self._layout["dtype"]).itemsize
            path = self._folder / _ROWS
            if not path.is_file() or path.stat().st_size < size:
                raise InputError(f"{path}: shorter than {_PROGRESS} beside it says; delete {self._folder}")
            with path.open("r+b") as file:  # what was added after the last commit
                file.truncate(size)

    def _clear(self) -> None:
        for path in (self._folder / _ROWS, *self._folder.glob("*.npz"), self._folder / _PROGRESS):
            path.unlink(missing_ok=True)
