"""The bundled teacher and CLIP, verified by checksums."""

from pathlib import Path

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import file_sha256, read_json, write_json

TEACHER = "shapes_teacher"
"""The name of the bundled teacher wherever a model is expected."""
_FOLDER = Path(__file__).parent.parent / "shapes" / "pretrained"
_CHECKSUMS = "sha256.json"


def teacher_folder() -> Path:
    """The bundled teacher, in Diffusers' Flax layout; raises `InputError` if a file is missing or damaged."""
    return _checked(_FOLDER) / "teacher"


def clip_folder() -> Path:
    """The bundled CLIP; raises `InputError` if a file is missing or damaged."""
    return _checked(_FOLDER) / "clip"


def write_checksums(folder: Path) -> None:
    """Writes the SHA-256 of every file below `folder` to a file in it."""
    write_json(folder / _CHECKSUMS, {path.relative_to(folder).as_posix(): file_sha256(path) for path in _files(folder)})


def pretrained_identity() -> str:
    """A SHA-256 that identifies this release of teacher and CLIP: that of the checksum list."""
    return file_sha256(_FOLDER / _CHECKSUMS)


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: missing; `python -m launch.shapes_teacher` makes it (README, The shapes world)")
    wanted = read_json(folder / _CHECKSUMS)
    way_out = "restore it (in a clone: git checkout), or reinstall the package"
    for name, sha256 in wanted.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: missing; {way_out}")
        if file_sha256(path) != sha256:
            raise InputError(f"{path}: damaged, its SHA-256 differs from {_CHECKSUMS}; {way_out}")
    strange = sorted(path for path in _files(folder) if path.relative_to(folder).as_posix() not in wanted)
    if strange:
        raise InputError(f"{strange[0]}: not part of the package; move it elsewhere")
    return folder


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != _CHECKSUMS]
