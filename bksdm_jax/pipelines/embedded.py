"""The teacher and the CLIP that come with the package, verified by their checksums."""

from pathlib import Path

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import file_sha256, read_json, write_json

TEACHER = "shapes_teacher"
"""The name that stands for the teacher's folder wherever a pipeline folder is asked for."""
_FOLDER = Path(__file__).parent.parent / "shapes" / "pretrained"
_CHECKSUMS = "sha256.json"


def teacher_folder() -> Path:
    """The shapes teacher, a pipeline folder in Diffusers' Flax layout; raises `InputError` if a file is damaged."""
    return _checked(_FOLDER) / "teacher"


def clip_folder() -> Path:
    """The shapes CLIP, for scores; raises `InputError` if a file is damaged."""
    return _checked(_FOLDER) / "clip"


def write_checksums(folder: Path) -> None:
    """Writes the SHA-256 of every file below `folder` into it."""
    write_json(folder / _CHECKSUMS, {path.relative_to(folder).as_posix(): file_sha256(path) for path in _files(folder)})


def pretrained_identity() -> str:
    """The SHA-256 of the list of checksums: tells one release of teacher and CLIP from another."""
    return file_sha256(_FOLDER / _CHECKSUMS)


def _checked(folder: Path) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: missing; `python -m launch.shapes_teacher` makes it, see README, The shapes world")
    wanted = read_json(folder / _CHECKSUMS)
    way_out = "restore it (in a clone: git checkout), or reinstall the package"
    for name, sha256 in wanted.items():
        path = folder / name
        if not path.is_file():
            raise InputError(f"{path}: missing; it comes with the package: {way_out}")
        if file_sha256(path) != sha256:
            raise InputError(f"{path}: damaged: its SHA-256 differs from the one in {_CHECKSUMS}: {way_out}")
    strange = sorted(path for path in _files(folder) if path.relative_to(folder).as_posix() not in wanted)
    if strange:
        raise InputError(f"{strange[0]}: not one of the package's files; move it away")
    return folder


def _files(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file() and path.name != _CHECKSUMS]
