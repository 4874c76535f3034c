"""Features of images on disk, gathered batch by batch, so that an interrupted pass continues."""

import contextlib
import json
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import atomic_file, make_folder, read_json, write_json
from bksdm_jax.metrics.sums import FeatureSums, read_sums, write_sums

_PROGRESS = "progress.json"


class Need(NamedTuple):
    """An extractor's feature: its sums over all images, or (`kept`) its values for each image."""

    extractor: str
    feature: str
    kept: bool = False


class FeatureStore:
    """Features of one extractor in a folder: files of rows, and running sums.

    Attributes:
        done: images whose features are stored, which includes those that were passed over.
        skipped: numbers of the images that were passed over, ascending.
    """

    def __init__(self, folder: Path, needs: Collection[Need], record: Mapping[str, Any]) -> None:
        """Continues what is in the folder, if it was made under the same record; else starts over.

        Args:
            folder: created if missing.
            needs: of one extractor.
            record: plain data on which the features depend.
        """
        self._folder, self._needs = make_folder(folder), sorted(needs)
        self._record = json.loads(json.dumps({**record, "needs": [list(need) for need in self._needs]}))
        self._rows: dict[str, dict[str, Any]] = {}
        self._sums = {need: FeatureSums() for need in self._needs if not need.kept}
        self.done, self.skipped = 0, []
        progress = self._progress()
        if progress is None:
            self._clear()
        else:
            self._resume(progress)

    def add(self, features: Mapping[str, np.ndarray], skipped: Sequence[int] = ()) -> None:
        """Adds the features of the next images, each [B, ...]; `skipped`: numbers of images in between without any."""
        for need in self._needs if features else ():
            rows = np.ascontiguousarray(features[need.feature])
            if need.kept:
                with self._path(need).open("ab") as file:
                    file.write(rows.data)
                self._rows[need.feature] = {"dtype": rows.dtype.name, "shape": rows.shape[1:]}
            else:
                self._sums[need].add(rows)
        count = len(next(iter(features.values()))) if features else 0
        self.done += count + len(skipped)
        self.skipped += skipped

    def commit(self) -> None:
        """Makes what was added so far permanent."""
        former = set(self._folder.glob("*.npz"))
        names = {}
        for need, sums in self._sums.items():
            names[need.feature] = f"{need.feature}.{self.done}.npz"
            with atomic_file(self._folder / names[need.feature]) as temporary:
                write_sums(temporary, sums)
        progress = {"record": self._record, "done": self.done, "skipped": self.skipped}
        write_json(self._folder / _PROGRESS, progress | {"rows": self._rows, "sums": names})
        for path in former - {self._folder / name for name in names.values()}:
            path.unlink()

    def read(self) -> dict[Need, np.ndarray | FeatureSums]:
        """Everything added so far: rows [N, ...] as memory-mapped arrays, and sums."""
        return {need: self._read_rows(need) if need.kept else self._sums[need] for need in self._needs}

    def _read_rows(self, need: Need) -> np.ndarray:
        layout = self._rows.get(need.feature)
        count = self.done - len(self.skipped)
        if layout is None or not count:
            return np.zeros((0,), np.float32)
        return np.memmap(self._path(need), layout["dtype"], mode="r", shape=(count, *layout["shape"]))

    def _path(self, need: Need) -> Path:
        return self._folder / f"{need.feature}.rows"

    def _progress(self) -> dict[str, Any] | None:
        """What is recorded in the folder, if it belongs to this record and its files are whole."""
        path = self._folder / _PROGRESS
        if not path.is_file():
            return None
        with contextlib.suppress(InputError, KeyError, TypeError):
            progress = read_json(path)
            return progress if progress["record"] == self._record and progress["done"] >= 0 else None
        return None

    def _resume(self, progress: Mapping[str, Any]) -> None:
        count = progress["done"] - len(progress["skipped"])
        for need in self._needs:
            if not need.kept:
                self._sums[need] = read_sums(self._folder / progress["sums"][need.feature])
            elif count:
                layout = progress["rows"][need.feature]
                size = count * int(np.prod(layout["shape"])) * np.dtype(layout["dtype"]).itemsize
                path = self._path(need)
                if not path.is_file() or path.stat().st_size < size:
                    raise InputError(f"{path}: shorter than {_PROGRESS} beside it says; delete {self._folder}")
                with path.open("r+b") as file:  # what was added after the last commit
                    file.truncate(size)
        self._rows, self.done, self.skipped = progress["rows"], progress["done"], progress["skipped"]

    def _clear(self) -> None:
        for path in (*self._folder.glob("*.rows"), *self._folder.glob("*.npz"), self._folder / _PROGRESS):
            path.unlink(missing_ok=True)
