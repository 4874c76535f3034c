"""The teacher and the CLIP that come with the package, held to their checksums."""

import hashlib
from pathlib import Path

from bksdm_jax.errors import InputError
from bksdm_jax.files import read_json, write_json

_FOLDER = Path(__file__).parent / "pretrained"
_CHECKSUMS = "sha256.json"


def teacher_folder() -> Path:
    """The shapes teacher, a pipeline folder in Diffusers' Flax layout; raises `InputError` if a file is damaged."""
    return _checked(_FOLDER) / "teacher"


def clip_folder() -> Path:
    """The shapes CLIP, for scores; raises `InputError` if a file is damaged."""
    return _checked(_FOLDER) / "clip"


def write_checksums(folder: Path) -> None:
    """Writes the SHA-256 of every file below `folder` into it."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != _CHECKSUMS)
    write_json(folder / _CHECKSUMS, {path.relative_to(folder).as_posix(): _sha256(path) for path in files})


def _checked(folder: Path) -> Path:
    wanted = read_json(folder / _CHECKSUMS)
    for name, sha256 in wanted.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: missing; it comes with the package, `git checkout {folder}` brings it back")
        if _sha256(path) != sha256:
            raise InputError(
                f"{path}: damaged (its SHA-256 isn't the one in {_CHECKSUMS}); `git checkout {folder}` brings it back"
            )
    return folder


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
