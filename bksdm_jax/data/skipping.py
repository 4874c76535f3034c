"""Examples of which unusable ones are skipped and listed."""

import csv
import io
import os
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from absl import logging

from bksdm_jax.base.errors import InputError, in_short

COLUMNS = ("name", "reason")


class Skipping(Sequence[Any]):
    """Examples, and the file that lists those that couldn't be used.

    The loader takes the next usable example instead, so that the number of examples and their order stay the same.
    """

    def __init__(self, examples: Sequence[Any], path: Path | None = None) -> None:
        """`path` is a `.csv` file with the columns `name` and `reason`, written when the first example is skipped.

        Without a path they are skipped without a list.
        """
        self.path, self._examples = path, examples
        self._noted: set[str] = set()

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index: int) -> Any:
        return self._examples[index]

    def note(self, name: str, error: InputError) -> None:
        """Lists a skipped example, once per process; raises `InputError` if the list can't be written."""
        if name in self._noted:
            return
        self._noted.add(name)
        logging.warning("skipped: %s", error)
        if self.path is None:
            return
        buffer = io.StringIO(newline="")
        csv.writer(buffer, lineterminator="\n").writerow((name, in_short(error)))
        with _WRITING:
            try:
                with self.path.open("ab+") as file:
                    head = "" if file.tell() else ",".join(COLUMNS) + "\n"
                    if not head and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
                        head = "\n"  # a kill or a full disk has cut the last line off
                    file.write((head + buffer.getvalue()).encode())  # at once, so that processes don't mix
            except OSError as problem:
                raise InputError(f"{self.path}: can't be written ({problem.strerror})") from problem


_WRITING = threading.Lock()


def skipped(path: Path) -> int:
    """The number of examples that the file lists."""
    if not path.exists():
        return 0
    with path.open(newline="", encoding="utf-8") as file:
        return len({row[0] for row in csv.reader(file) if row}) - 1
