"""Images with their captions in files beside them: `.txt`, `.caption` or `.json`, in folders of any depth.

So do img2dataset's format `files` and kohya's scripts keep them.
"""

import dataclasses
import itertools
import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path, PurePosixPath

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import encoding_of
from bksdm_jax.base.paths import AnyPath
from bksdm_jax.data.decode import ENDINGS, FOREIGN_ENDINGS
from bksdm_jax.data.forms.listing import Entry, Identity, walk
from bksdm_jax.data.forms.pairs import (
    MOST_TEXT,
    Chunk,
    Pair,
    Reject,
    StoredFile,
    captions,
    counted,
    file_bytes,
    printable,
)
from bksdm_jax.data.options import SourceOptions

TEXTS = (".txt", ".caption", ".json")
"""Endings of the files with captions; of several of one image, the first is read."""
IMAGES = (*ENDINGS, *FOREIGN_ENDINGS)
"""Endings of images, those of formats that aren't read included."""
_REPEATED = re.compile(r"(\d{1,3})_(.+)")  # kohya's folders: repeats, and the caption of images without one
_Row = tuple[str, tuple[str, ...], int, str]  # an image, its files of captions, its repeats, and its usual caption


@dataclasses.dataclass(frozen=True)
class FilesChunk:
    """Some images."""

    folder: AnyPath
    rows: tuple[_Row, ...]
    column: str

    def read(self, scratch: Path) -> Iterator[Pair | Reject]:
        """As `Chunk.read`."""
        del scratch
        for name, texts, times, caption in self.rows:
            try:
                found = captions(self._captions(texts), caption) if texts or caption else ()
            except ValueError as error:
                yield Reject(printable(name), str(error))
                continue
            if not found:
                expected = " or ".join(str(PurePosixPath(name).with_suffix(ending).name) for ending in TEXTS)
                yield Reject(printable(name), f"no caption: expected it in {expected} beside the image")
                continue
            yield Pair(printable(name), StoredFile(self.folder / name), found, times=times)

    def _captions(self, names: Sequence[str]) -> list[object]:
        by_ending = {PurePosixPath(name).suffix.lower(): name for name in names}
        order = (".json", *TEXTS) if self.column else TEXTS
        for ending in order:
            if ending in by_ending:
                data = file_bytes(self.folder / by_ending[ending], MOST_TEXT)
                return texts_of(ending, data, self.column)
        return []


def texts_of(ending: str, data: bytes, column: str) -> list[object]:
    """The captions in a file with one of the endings `TEXTS`: all its text, or the value of `column` in its JSON.

    An empty `column` is `caption`. Raises `ValueError` if it isn't text, or its JSON has no such key.
    """
    try:
        text = data.decode(encoding_of(data[:4]))
    except UnicodeError as error:
        raise ValueError(f"its {ending} isn't UTF-8") from error
    if ending != ".json":
        return [text.strip()]
    try:
        table = json.loads(text)
    except (RecursionError, ValueError) as error:
        raise ValueError("its .json isn't valid JSON") from error
    key = column or "caption"
    if not isinstance(table, dict) or key not in table:
        raise ValueError(f"its .json has no {key!r}; name the caption's key with --config.text_column")
    texts = table[key]
    return texts if isinstance(texts, list) else [texts]


class FilesSource:
    """A folder of images, with or without captions."""

    unit = "pairs"
    splits: tuple[str, ...] = ()

    def __init__(self, folder: AnyPath, options: SourceOptions, chunk: int) -> None:
        """Lists the folder; chunks will have `chunk` images.

        Raises `InputError` if there are no images, or no captions and none in `options`.
        """
        self._folder, self._options, self._chunk = folder, options, chunk
        identity, self.total, images, alone, captioned = Identity(), 0, 0, [], 0
        with_images: Counter[str] = Counter()
        for name, entries in walk(folder):
            identity.add(entries)
            groups, texts = _grouped(entries)
            with_images[name] += len(groups)
            images += len(groups)
            captioned += sum(bool(found) for _, found in groups)
            alone += texts
        if not images:
            raise InputError(f"{folder}: no images ({', '.join(ENDINGS)})")
        self._repeated = self._kohya([name for name, count in with_images.items() if count])
        if not captioned and not options.caption and not self._repeated:
            raise InputError(
                f"{folder}: {counted(images, 'image')} without captions; expected metadata.csv (file_name,text), "
                "another table given instead of the folder, a .txt file beside each image, or one caption for all: "
                '--config.caption="a photo of sks dog"'
            )
        self.total = images
        self.facts = identity.facts()
        self.notes = [
            f"{name}: its {counted(with_images[name], 'image')} {times} times each"
            for name, (times, _) in self._repeated.items()
        ]
        if alone:
            self.notes.append(f"{counted(len(alone), 'text file')} without an image, such as {printable(alone[0])}")

    def chunks(self) -> Iterator[Chunk]:
        """As `Source.chunks`."""
        rows = self._rows()
        while chunk := tuple(itertools.islice(rows, self._chunk)):
            yield FilesChunk(self._folder, chunk, self._options.text_column)

    def _rows(self) -> Iterator[_Row]:
        for name, entries in walk(self._folder):
            times, caption = self._repeated.get(name, (1, ""))
            for image, texts in _grouped(entries)[0]:
                yield image, texts, times, self._options.caption or caption

    def _kohya(self, folders: Sequence[str]) -> Mapping[str, tuple[int, str]]:
        """Repeats and usual captions by folder, if all folders of images are named as for kohya's scripts."""
        found = {name: _REPEATED.fullmatch(PurePosixPath(name).name) for name in folders}
        if not self._options.repeats or not all(found.values()):
            return {}
        return {name: (max(1, int(match[1])), match[2].strip()) for name, match in found.items()}


def _grouped(entries: Sequence[Entry]) -> tuple[list[tuple[str, tuple[str, ...]]], list[str]]:
    """The images of a folder with their files of captions, and the `.txt` and `.caption` files of no image."""
    texts: dict[str, list[str]] = {}
    for entry in entries:
        if entry.ending in TEXTS:
            texts.setdefault(_stem(entry.name), []).append(entry.name)
    images = [entry.name for entry in entries if entry.ending in IMAGES]
    # `1.jpg.txt` is of `1.jpg` too
    groups = [(name, tuple(texts.get(_stem(name), ()) or texts.get(name, ()))) for name in images]
    used = {text for _, found in groups for text in found}
    alone = [name for found in texts.values() for name in found if name not in used and not name.endswith(".json")]
    return groups, alone


def _stem(name: str) -> str:
    return str(PurePosixPath(name).with_suffix(""))
