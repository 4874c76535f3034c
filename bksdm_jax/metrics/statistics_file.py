"""Reference statistics in a file: `.npz` with `mu` and `sigma`, as pytorch-fid's, and a record of what they are of."""

import dataclasses
import json
import math
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from bksdm_jax.base.errors import InputError, in_short, shown
from bksdm_jax.base.files import atomic_file
from bksdm_jax.base.finite import find_non_finite
from bksdm_jax.base.paths import require_file
from bksdm_jax.formats.torch_storages import Bounded

RECORD = "record"
"""Name of the array that holds the facts as JSON text; other tools read `mu` and `sigma` only."""
_FLOATS = (np.dtype(np.float32), np.dtype(np.float64))
_COMPRESSIONS = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED)  # `zipfile` expands the others without a bound
_CHUNK = 2**20  # bytes
_MOST_RECORD = 2**16  # letters
_ASYMMETRY = 1e-5  # of the largest covariance; float32 rounds to 1e-7


@dataclasses.dataclass(frozen=True)
class Statistics:
    """Mean [D] and unbiased covariance [D, D] of features, float64, and facts about them, plain data."""

    mean: np.ndarray
    covariance: np.ndarray
    facts: Mapping[str, Any]


def write_statistics(path: Path, statistics: Statistics) -> None:
    """Writes `mu`, `sigma` and the facts; raises `InputError` if numbers aren't finite or the file can't be written."""
    for name, count in find_non_finite({"mu": statistics.mean, "sigma": statistics.covariance}):
        raise InputError(f"{path}: not written, since {count:,} numbers of {name} aren't finite; check the weights")
    record = json.dumps(dict(statistics.facts), sort_keys=True, allow_nan=False)
    with atomic_file(path) as temporary, temporary.open("wb") as file:
        np.savez(file, mu=statistics.mean, sigma=statistics.covariance, **{RECORD: np.str_(record)})


def read_statistics(path: Path, dimensions: int, wanted: Mapping[str, Any]) -> Statistics:
    """Reads statistics that this package, pytorch-fid or a tool of its kind wrote.

    Args:
        path: `.npz` with `mu` [D] and `sigma` [D, D], float32 or float64.
        dimensions: D.
        wanted: facts that the file's record must not contradict, such as `extractor` and `resize`; a warning names
            those that it lacks.

    Raises:
        InputError: the file can't be read, holds something else, or is of other images than wanted.
    """
    require_file(path)
    try:
        with path.open("rb") as file, zipfile.ZipFile(Bounded(file)) as archive:  # type: ignore[arg-type]
            mean = _numbers(path, archive, "mu", (dimensions,))
            covariance = _numbers(path, archive, "sigma", (dimensions, dimensions))
            facts = _record(path, archive)
    except InputError:
        raise
    except Exception as error:  # `zipfile` and NumPy's reader raise many types on damaged files
        raise InputError(f"{path}: not a readable .npz file ({in_short(error)})") from error
    if np.abs(covariance - covariance.T).max() > _ASYMMETRY * np.abs(covariance).max():
        raise InputError(f"{path}: sigma isn't symmetric; expected a covariance")
    _compare(path, facts, wanted)
    return Statistics(mean, covariance, facts)


def _numbers(path: Path, archive: zipfile.ZipFile, name: str, shape: tuple[int, ...]) -> np.ndarray:
    """An array of finite floats in float64."""
    array = _array(path, archive, name, shape, 8 * math.prod(shape))
    if array is None:
        held = ", ".join(shown(entry)[:40] for entry in archive.namelist()[:8])
        raise InputError(f"{path}: no {name} inside (it holds {held or 'nothing'}); expected mu and sigma")
    if array.dtype.newbyteorder("=") not in _FLOATS:
        raise InputError(f"{path}: {name} is of {array.dtype}; expected float32 or float64")
    if not np.isfinite(array).all():
        bad = np.argwhere(~np.isfinite(array))[0]
        raise InputError(f"{path}: {name}[{', '.join(map(str, bad))}] is {array[tuple(bad)]}; expected finite numbers")
    return array.astype(np.float64)


def _record(path: Path, archive: zipfile.ZipFile) -> dict[str, Any]:
    array = _array(path, archive, RECORD, (), 4 * _MOST_RECORD)
    if array is None:
        return {}
    facts = json.loads(array.item()) if array.dtype.kind == "U" else None
    if not isinstance(facts, dict):
        raise InputError(f"{path}: {RECORD} isn't a JSON object; write the file again")
    return facts


def _array(path: Path, archive: zipfile.ZipFile, name: str, shape: tuple[int, ...], most: int) -> np.ndarray | None:
    """An array of this shape and at most so many bytes; None if there is none of that name."""
    entries = [entry for entry in archive.infolist() if entry.filename == f"{name}.npy"]
    if not entries:
        return None
    (entry,) = entries  # raises for two of one name
    if entry.compress_type not in _COMPRESSIONS:
        raise InputError(f"{path}: {name} is compressed in a way that NumPy doesn't use; write the file again")
    with archive.open(entry) as file:
        if np.lib.format.read_magic(file) != (1, 0):  # the others are for headers beyond 64 KiB
            raise InputError(f"{path}: {name} has fields; expected numbers")
        found, columns_first, dtype = np.lib.format.read_array_header_1_0(file)
        if dtype.hasobject:
            raise InputError(f"{path}: {name} is pickled, and pickles are never loaded; expected numbers")
        if found != shape:
            raise InputError(f"{path}: {name} of shape {list(found)[:8]}; expected {list(shape)}")
        size = math.prod(shape) * dtype.itemsize
        if size > most or entry.file_size != file.tell() + size:
            raise InputError(
                f"{path}: {name} takes {entry.file_size} bytes; expected {size} of numbers, and at most {most}"
            )
        data = bytearray().join(file.read(min(_CHUNK, size - start)) for start in range(0, size, _CHUNK))
    return np.frombuffer(data, dtype, math.prod(shape)).reshape(shape, order="F" if columns_first else "C")


def _compare(path: Path, facts: Mapping[str, Any], wanted: Mapping[str, Any]) -> None:
    for key, value in wanted.items():
        if key in facts and facts[key] != value:
            raise InputError(
                f"{path}: {key} is {shown(facts[key])}; expected {shown(value)}, since other features can't be compared"
            )
    unknown = [key for key in wanted if key not in facts]
    if unknown:
        logging.warning("%s: doesn't say its %s; taken to be as wanted", path, ", ".join(unknown))
