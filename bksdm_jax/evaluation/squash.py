"""Real images as protocols have them: squashed to a square and saved as JPEG."""

import functools
from collections.abc import Mapping, Sequence
from pathlib import Path

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import atomic_file, make_folder
from bksdm_jax.base.paths import read_bytes
from bksdm_jax.base.progress import Progress
from bksdm_jax.data.decode import MOST_BYTES, open_image, to_rgb
from bksdm_jax.evaluation.images import in_threads
from bksdm_jax.sampling.config import FORMATS
from bksdm_jax.sampling.writer import encoded

_FORMAT = "jpeg"
_SHOWN = 3


def squashed_names(paths: Sequence[Path]) -> dict[str, Path]:
    """Name of the file to make -> the image; raises `InputError` if two images would have one name."""
    names: dict[str, Path] = {}
    for path in paths:
        name = f"{path.stem}{FORMATS[_FORMAT].ending}"
        if name in names:
            raise InputError(f"{path}: becomes {name}, as {names[name]} does; rename one of them")
        names[name] = path
    return names


def squash_all(names: Mapping[str, Path], folder: Path, size: int) -> None:
    """Makes the missing files of a folder in threads, each atomically.

    Pixels are those of Pillow's `resize` of the RGB image with its default filter, bicubic, whatever the shape;
    EXIF rotations aren't applied. An image that can't be decoded is an error after all others are made.

    Args:
        names: of the files -> images.
        folder: created if missing; other files in it are an error.
        size: height and width in pixels.

    Raises:
        InputError: images can't be read, files can't be written, or others are there.
    """
    there = {path.name for path in make_folder(folder).iterdir() if not path.name.startswith(".")}
    others = sorted(there - names.keys())
    if others:
        raise InputError(f"{folder / others[0]}: not of this run ({len(others)} such file(s)); move it elsewhere")
    missing = {path: folder / name for name, path in names.items() if name not in there}
    bad = []
    with Progress(f"resizing to {size}", len(names), len(there)) as progress:
        for path, readable in zip(
            missing, in_threads(functools.partial(_squash, missing, size), tuple(missing)), strict=True
        ):
            if not readable:
                bad.append(path)
            progress.advance()
    if bad:
        more = f" and {len(bad) - _SHOWN} more" if len(bad) > _SHOWN else ""
        shown = ", ".join(path.name for path in bad[:_SHOWN])
        raise InputError(f"{bad[0].parent}: {len(bad)} unreadable image(s), {shown}{more}; replace them and run again")


def _squash(targets: Mapping[Path, Path], size: int, path: Path) -> bool:
    """Whether the image could be read."""
    try:
        image = to_rgb(open_image(read_bytes(path, MOST_BYTES)), upright=False)
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        return False
    with atomic_file(targets[path]) as temporary:
        temporary.write_bytes(encoded(image.resize((size, size)), _FORMAT))
    return True
