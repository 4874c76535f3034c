"""Unpacks images that can't be read in random order, as in `.tar.gz` and Parquet files, to one file of the cache."""

import dataclasses
import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from absl import logging

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.files import make_folder
from bksdm_jax.base.locks import locked
from bksdm_jax.base.paths import AnyPath, cache_folder
from bksdm_jax.data.forms.pairs import Pair, Reject, Source, StoredBytes, StoredFile, StoredPart
from bksdm_jax.data.options import ImageOptions, SourceOptions

_IMAGES, _INDEX = "images.bin", "index.jsonl"
_OF_IMAGES = {field.name for field in dataclasses.fields(ImageOptions)}  # they change no unpacked file


def unpacked(source: Source, where: AnyPath, options: SourceOptions) -> Iterator[Pair | Reject]:
    """The pairs and rejects of a source, each image in a file or a part of one.

    What has to be unpacked for that is kept in `~/.cache/bksdm_jax/images`, by the source's identity and its `options`.

    Raises `InputError` if the cache can't be written.
    """
    keys = [field.name for field in dataclasses.fields(SourceOptions)]  # `options` may be all settings of a run
    used = {key: getattr(options, key) for key in keys if key not in _OF_IMAGES}
    settings = json.dumps([str(where), source.facts, used], sort_keys=True)
    folder = cache_folder() / "images" / hashlib.sha256(settings.encode()).hexdigest()[:24]
    if (folder / _INDEX).exists():
        yield from _indexed(folder)
        return
    with tempfile.TemporaryDirectory(prefix="bksdm_jax_") as scratch:
        waiting: list[Pair | Reject] = []
        for chunk in source.chunks():
            for pair in chunk.read(Path(scratch)):
                if _must_unpack(pair, Path(scratch)):
                    break
                waiting.append(pair)
            else:
                continue
            break
        else:
            yield from waiting
            return
    with locked(folder, wait=True):  # processes of one machine share it
        if not (folder / _INDEX).exists():
            _unpack(source, where, folder)
    yield from _indexed(folder)


def _must_unpack(pair: Pair | Reject, scratch: Path) -> bool:
    if isinstance(pair, Reject) or isinstance(pair.image, StoredFile):
        return False
    return isinstance(pair.image, StoredBytes) or (
        isinstance(pair.image, StoredPart) and scratch in Path(pair.image.path).parents
    )


def _unpack(source: Source, where: AnyPath, folder: Path) -> None:
    logging.info("%s: can't be read in random order; its images are unpacked to %s", where, folder)
    scratch = make_folder(folder / "scratch")
    partial = folder / f"{_INDEX}.partial"
    try:
        with (folder / _IMAGES).open("wb") as images, partial.open("w", encoding="utf-8") as index:
            for chunk in source.chunks():
                for pair in chunk.read(scratch):
                    index.write(json.dumps(_stored(pair, images)) + "\n")
        partial.replace(folder / _INDEX)
    except OSError as error:
        raise InputError(
            f"{folder}: can't be written ({in_short(error)}); set XDG_CACHE_HOME to a larger disk"
        ) from error
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        if not (folder / _INDEX).exists():
            for path in (partial, folder / _IMAGES):
                path.unlink(missing_ok=True)


def _stored(pair: Pair | Reject, images: BinaryIO) -> list[object]:
    """A line of the index, when the image's bytes are in `images`."""
    if isinstance(pair, Reject):
        return [pair.name, pair.reason]
    try:
        data = pair.image.read()
    except InputError:
        raise
    except ValueError as error:
        return [pair.name, str(error)]
    offset = images.tell()
    images.write(data)
    return [pair.name, offset, len(data), pair.texts, pair.split, pair.times]


def _indexed(folder: Path) -> Iterator[Pair | Reject]:
    with (folder / _INDEX).open(encoding="utf-8") as index:
        for line in index:
            name, *rest = json.loads(line)
            if len(rest) == 1:
                yield Reject(name, rest[0])
                continue
            offset, size, texts, split, times = rest
            yield Pair(name, StoredPart(folder / _IMAGES, offset, size, name), tuple(texts), split, times)
