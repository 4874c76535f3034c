"""Files of images, encoded and written by threads."""

import concurrent.futures
import dataclasses
import io
from collections import deque
from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import atomic_file, make_folder
from bksdm_jax.base.images import save_png
from bksdm_jax.base.paths import read_bytes
from bksdm_jax.data.decode import MOST_BYTES, open_image, to_rgb
from bksdm_jax.sampling.config import FORMATS

IMAGES = "images"
_KEYWORD = "parameters"  # of the text chunk that WebUIs read
_AHEAD = 4  # images per thread that wait in memory


@dataclasses.dataclass(frozen=True)
class Output:
    """A folder's files of images: `images/000000.png`, ... .

    Attributes:
        folder: in which `images/` lies.
        format: a key of `FORMATS`.
        resized: side in pixels of a second copy, made from the first file, in `images_PIXELS/`; 0: there is none.
        previews: numbers of the calls with a preview, `previews/000000_004.png`.
    """

    folder: Path
    format: str = "png"
    resized: int = 0
    previews: tuple[int, ...] = ()

    def name(self, index: int) -> str:
        """The file of an image, relative to the folder."""
        return f"{IMAGES}/{index:06d}{FORMATS[self.format].ending}"

    def names(self, index: int) -> list[str]:
        """All files of an image, relative to the folder, in the order in which they are written."""
        name = self.name(index)
        resized = [f"{IMAGES}_{self.resized}/{Path(name).name}"] if self.resized else []
        return [name, *resized, *(self._preview(index, call) for call in self.previews)]

    def begin(self) -> set[str]:
        """Makes the folders; the files that are there, relative to the folder."""
        folders = {Path(name).parent.name for name in self.names(0)}
        for folder in folders:
            make_folder(self.folder / folder)
        return {f"{folder}/{path.name}" for folder in folders for path in (self.folder / folder).iterdir()}

    def _preview(self, index: int, call: int) -> str:
        return f"previews/{index:06d}_{call:03d}.png"

    def write(
        self, index: int, image: np.ndarray, missing: set[str], text: str = "", previews: Mapping[int, np.ndarray] = {}
    ) -> None:
        """Writes the missing files of an image, uint8 [H, W, 3], each atomically; PNG files get `text`.

        `previews` are those of its calls, of the same shape. Raises `InputError` if a file can't be written.
        """
        first, *others = self.names(index)
        if first in missing:
            self._save(first, Image.fromarray(image), text)
        estimates = {self._preview(index, call): estimate for call, estimate in previews.items()}
        for name in others:
            if name in missing and name in estimates:
                save_png(self.folder / name, estimates[name])
            elif name in missing:
                path = self.folder / first
                try:
                    saved = to_rgb(open_image(read_bytes(path, MOST_BYTES)))
                except ValueError as error:
                    raise InputError(f"{path}: not a readable image ({error}); delete it, it is made again") from error
                self._save(name, saved.resize((self.resized, self.resized)))

    def _save(self, name: str, image: Image.Image, text: str = "") -> None:
        with atomic_file(self.folder / name) as temporary:
            temporary.write_bytes(encoded(image, self.format, text))


def encoded(image: Image.Image, form: str, text: str = "") -> bytes:
    """The bytes of an image file, with Pillow's default quality.

    `text` goes into the chunk that WebUIs read, where the format is PNG: `tEXt` if it is Latin-1, else `iTXt`.
    """
    file, chunks = io.BytesIO(), PngInfo()
    if text and form == "png":
        chunks.add_text(_KEYWORD, text)
    image.save(file, format=FORMATS[form].pillow, **({"pnginfo": chunks} if form == "png" else {}))
    return file.getvalue()


def as_stored(image: np.ndarray, form: str, resized: int = 0) -> np.ndarray:
    """An image, uint8 [H, W, 3], as it would be read from its last file: see `Output`."""
    if form != "png":
        image = _read_again(Image.fromarray(image), form)
    if resized:
        image = _read_again(Image.fromarray(image).resize((resized, resized)), form)
    return image


def _read_again(image: Image.Image, form: str) -> np.ndarray:
    return np.asarray(to_rgb(open_image(encoded(image, form))))


class Writers:
    """`count` threads that write; use as a context manager, which waits for them unless there was an error."""

    def __init__(self, count: int) -> None:
        self._pool, self._most = concurrent.futures.ThreadPoolExecutor(count), count * _AHEAD
        self._waiting: deque[tuple[concurrent.futures.Future[None], Callable[[], None]]] = deque()

    def __enter__(self) -> "Writers":
        return self

    def add(self, ended: Callable[[], None], call: Callable[..., None], *arguments: object) -> None:
        """Has a thread make the call, and calls `ended` in the caller's thread after it; waits if many are waiting.

        Raises what an earlier call has raised.
        """
        self._waiting.append((self._pool.submit(call, *arguments), ended))
        while self._waiting and (len(self._waiting) > self._most or self._waiting[0][0].done()):
            self._end_first()

    def _end_first(self) -> None:
        call, ended = self._waiting.popleft()
        call.result()
        ended()

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        try:
            while kind is None and self._waiting:
                self._end_first()
        finally:
            self._pool.shutdown(cancel_futures=True)
