"""Folders called `train/`, `validation/` and `test/`, each a source of its own."""

import dataclasses
import hashlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bksdm_jax.base.errors import in_one_line
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.data.forms.pairs import SPLIT_NAMES, Chunk, Pair, Reject, Source, in_order


@dataclasses.dataclass(frozen=True)
class SplitChunk:
    """A chunk of the source in the folder `name`; its pairs are of `split`."""

    chunk: Chunk
    name: str
    split: str

    def read(self, scratch: Path) -> Iterator[Pair | Reject]:
        """As `Chunk.read`."""
        for pair in self.chunk.read(scratch):
            named = dataclasses.replace(pair, name=f"{self.name}/{pair.name}")
            yield dataclasses.replace(named, split=self.split) if isinstance(named, Pair) else named


class SplitSource:
    """The sources in the folders of a dataset's splits."""

    def __init__(self, parts: Mapping[str, Source], others: Sequence[str] = ()) -> None:
        """`parts` are the sources by the name of their folder, a key of `SPLIT_NAMES` in lower case.

        `others` beside these folders aren't read, which is a note.
        """
        self._parts = parts
        self.unit = "pairs" if all(part.unit == "pairs" for part in parts.values()) else "archives"
        same = all(part.unit == self.unit for part in parts.values())
        self.total = sum(part.total for part in parts.values()) if same else 0
        self.splits = in_order({SPLIT_NAMES[name.lower()] for name in parts})
        self.notes = [f"{name}: {note}" for name, part in parts.items() for note in part.notes]
        if others:
            named = ", ".join(in_one_line(name) for name in others[:3])
            more = f" and {len(others) - 3} more" if len(others) > 3 else ""
            self.notes.append(f"not read, since beside {', '.join(parts)}: {named}{more}")
        counts: dict[str, int | str] = {}
        whole = hashlib.sha256()
        for name, part in parts.items():
            whole.update(f"{name} {part.facts['sha256']}\n".encode())
            for key, value in part.facts.items():
                if isinstance(value, int):
                    counts[key] = int(counts.get(key, 0)) + value
        self.facts = counts | {"sha256": whole.hexdigest()}

    def chunks(self) -> Iterator[Chunk]:
        """As `Source.chunks`."""
        for name, part in self._parts.items():
            for chunk in part.chunks():
                yield SplitChunk(chunk, name, SPLIT_NAMES[name.lower()] if self.splits else "")


def split_folders(folder: AnyPath) -> dict[str, str]:
    """The folders of splits in a folder -> their split; none if there is no folder for training."""
    found = sorted(path.name for path in folder.iterdir() if path.name.lower() in SPLIT_NAMES and path.is_dir())
    folders = {name: SPLIT_NAMES[name.lower()] for name in found}
    return folders if "train" in folders.values() else {}
