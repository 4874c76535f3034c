"""A folder of images with captions in `metadata.csv`."""

import dataclasses
from pathlib import PurePath

from PIL import Image

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.paths import AnyPath, read_bytes, to_path
from bksdm_jax.data.decode import MOST_BYTES, open_image, to_rgb
from bksdm_jax.data.tables import read_table


@dataclasses.dataclass(frozen=True)
class FileExample:
    """An image file and its caption."""

    path: AnyPath
    name: str
    text: str

    @property
    def texts(self) -> tuple[str, ...]:
        """The captions: one."""
        return (self.text,)

    def image(self) -> Image.Image:
        """Upright RGB; raises `InputError` if the file can't be read or isn't a usable image."""
        data = read_bytes(self.path, MOST_BYTES)
        try:
            return to_rgb(open_image(data))
        except ValueError as error:
            raise self._unreadable(error) from error

    def size(self) -> tuple[int, int]:
        """Width and height as the file's header states them; raises `InputError` as `image`."""
        data = read_bytes(self.path, MOST_BYTES)
        try:
            return open_image(data).size
        except ValueError as error:
            raise self._unreadable(error) from error

    def _unreadable(self, error: Exception) -> InputError:
        advice = "replace the file, or remove its row and start in a new workdir"
        return InputError(f"{self.path}: not a readable image ({error}); {advice}")


def read_image_folder(folder: str | AnyPath) -> list[FileExample]:
    """The examples listed in a folder's `metadata.csv` (`file_name,text`), in that order.

    Raises `InputError` if the folder or its table is missing, or a listed image isn't in the folder.
    """
    folder = to_path(folder)
    table = folder / "metadata.csv"
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; expected images and a metadata.csv with file_name,text")
    examples = []
    for number, row in enumerate(read_table(table, ("file_name", "text")), start=1):
        name = PurePath(row["file_name"])
        path = folder / name
        try:
            inside = not name.is_absolute() and ".." not in name.parts and path.is_file()
        except (OSError, ValueError):  # a name too long
            inside = False
        if not inside:
            raise InputError(f"{table}: row {number} names {row['file_name']!r}, which isn't a file in {folder}")
        examples.append(FileExample(path, row["file_name"], row["text"]))
    return examples
