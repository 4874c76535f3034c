"""COCO's images with the captions file of its `annotations/`."""

import dataclasses
import itertools
from collections.abc import Iterator
from pathlib import Path

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.paths import AnyPath, local_path, to_path
from bksdm_jax.data.coco import Coco, read_coco
from bksdm_jax.data.forms.files import IMAGES
from bksdm_jax.data.forms.listing import Identity, walk
from bksdm_jax.data.forms.pairs import Chunk, Pair, Reject, StoredFile, captions, counted


@dataclasses.dataclass(frozen=True)
class CocoChunk:
    """Some images, each with its captions."""

    folder: AnyPath
    rows: tuple[tuple[str, tuple[str, ...]], ...]
    caption: str

    def read(self, scratch: Path) -> Iterator[Pair | Reject]:
        """As `Chunk.read`."""
        del scratch
        for name, texts in self.rows:
            try:
                yield Pair(name, StoredFile(self.folder / name), captions(texts, self.caption))
            except ValueError as error:
                yield Reject(name, str(error))


class CocoSource:
    """A captions file; its images in ascending order of id, each with all of its captions."""

    unit = "pairs"
    splits: tuple[str, ...] = ()

    def __init__(self, path: AnyPath, images: str, caption: str, chunk: int) -> None:
        """Reads the captions file; chunks will have `chunk` images.

        Args:
            path: the captions file.
            images: folder of the images; empty: the file's own, or the one beside `annotations/` that is called like
                the captions file: `val2014` for `annotations/captions_val2014.json`.
            caption: of images without one; empty: they are rejected.
            chunk: images of a chunk.

        Raises:
            InputError: as `read_coco`, or there is no such folder.
        """
        self._coco = read_coco(local_path("source", path))
        self._folder = to_path(images) if images else _images(path, self._coco)
        if not self._folder.is_dir():
            raise InputError(f"coco_images: {self._folder}: no such folder")
        self._caption, self._chunk, self.total = caption, chunk, len(self._coco.names)
        identity, named, unlisted = Identity(), set(self._coco.names.values()), 0
        for _, entries in walk(self._folder):
            identity.add(entries)
            unlisted += sum(entry.ending in IMAGES and entry.name not in named for entry in entries)
        texts = repr(sorted(self._coco.captions.items())).encode()
        self.facts = {"images": self.total} | identity.facts(texts)
        self.notes = [f"{counted(unlisted, 'image')} in {self._folder}: {path.name} doesn't name them"] * bool(unlisted)

    def chunks(self) -> Iterator[Chunk]:
        """As `Source.chunks`."""
        rows = ((name, tuple(self._coco.captions.get(own, ()))) for own, name in self._coco.names.items())
        while chunk := tuple(itertools.islice(rows, self._chunk)):
            yield CocoChunk(self._folder, chunk, self._caption)


def _images(path: AnyPath, coco: Coco) -> AnyPath:
    first = next(iter(coco.names.values()))
    own = path.stem.removeprefix("captions_")
    for folder in (path.parent, path.parent / own, path.parent.parent / own):
        if (folder / first).exists():
            return folder
    raise InputError(
        f"{path}: {first}, its first image, is neither beside it nor in {path.parent.parent / own}; "
        "name the images' folder with --config.coco_images"
    )
