"""Turns the chunks' shards into a TFDS dataset: files under their final names, then the metadata."""

import contextlib
import dataclasses
import itertools
import shutil
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import tensorflow_datasets as tfds
from array_record.python.array_record_data_source import ArrayRecordDataSource
from array_record.python.array_record_module import ArrayRecordWriter
from tensorflow_datasets.core import naming, splits

from bksdm_jax.base.errors import InputError, in_short
from bksdm_jax.base.files import atomic_file
from bksdm_jax.data.prepare.shards import SPLITS, TRAIN, shard_path

INFO = "dataset_info.json"
"""The file that marks a folder as a dataset; it is written last, so an interrupted folder never looks finished."""
PARTS = "parts"
"""The subfolder with the chunks' shards until the dataset is complete."""
_SUFFIX = "array_record"
_METADATA = ".metadata"
_MERGED = 1000  # examples from which on a file of the validation split takes no further shard


@dataclasses.dataclass(frozen=True)
class _File:
    """A file of the dataset, and the shards it is made of."""

    shards: list[Path]
    examples: int


def write_set(
    folder: Path,
    name: str,
    description: str,
    features: tfds.features.FeaturesDict,
    records: Sequence[Mapping[str, Any]],
    split_names: Sequence[str] = SPLITS,
) -> None:
    """Makes `folder` a dataset from the shards of all chunks; continues where an interrupted call stopped.

    Args:
        folder: of the dataset; the shards are in its subfolder `PARTS`.
        name: of the dataset, and the beginning of its files' names.
        description: of the dataset.
        features: of an example.
        records: for each chunk in order, examples and bytes by split under `splits`.
        split_names: of the dataset.

    Raises:
        InputError: a shard is missing, or the folder can't be written.
    """
    template = naming.ShardedFileTemplate(data_dir=folder, dataset_name=name, filetype_suffix=_SUFFIX)
    infos, parts = [], folder / PARTS
    for split in split_names:
        files = _files(parts, split, [record["splits"][split][0] for record in records])
        if not files:
            continue
        split_template = template.replace(split=split)
        for index, file in enumerate(files):
            path = Path(split_template.sharded_filepath(shard_index=index, num_shards=len(files)))
            _move(file.shards, path)
        infos.append(
            splits.SplitInfo(
                name=split,
                shard_lengths=[file.examples for file in files],
                num_bytes=sum(record["splits"][split][1] for record in records),
                filename_template=split_template,
            )
        )
    facts = {"features": features, "split_infos": infos, "filename_template": template, "description": description}
    try:
        _write_metadata(folder, infos, facts)
        clear(folder)
    except OSError as error:
        raise InputError(f"{folder}: can't be written ({error.strerror or error})") from error


def _write_metadata(folder: Path, infos: Sequence[splits.SplitInfo], facts: Mapping[str, Any]) -> None:
    with tempfile.TemporaryDirectory(dir=folder, prefix=_METADATA) as temporary:
        for path in itertools.chain.from_iterable(info.filepaths for info in infos):
            (Path(temporary) / path.name).touch()  # TFDS looks for the data files beside the metadata
        tfds.folder_dataset.write_metadata(data_dir=temporary, check_data=False, version="1.0.0", **facts)
        for file in sorted(Path(temporary).glob("*.json"), key=lambda path: path.name == INFO):
            file.replace(folder / file.name)


def read_example(path: Path, position: int) -> bytes:
    """A serialized example of a shard."""
    with ArrayRecordDataSource([str(path)]) as records:
        return records[position]


def _files(parts: Path, split: str, counts: Sequence[int]) -> list[_File]:
    """A file for each training shard; the few examples of other splits are merged into fewer files."""
    files: list[_File] = []
    for index, count in enumerate(counts):
        if not count:
            continue
        path = shard_path(parts, index, split)
        if split != TRAIN and files and files[-1].examples < _MERGED:
            files[-1] = _File([*files[-1].shards, path], files[-1].examples + count)
        else:
            files.append(_File([path], count))
    return files


def _move(shards: Sequence[Path], target: Path) -> None:
    """Renames one shard or merges several, unless an interrupted call has done so."""
    if not shards[0].exists() and target.exists():
        return
    missing = next((path for path in shards if not path.exists()), None)
    if missing is not None:
        raise InputError(f"{missing}: missing; delete {missing.parent.parent} and prepare the dataset again")
    try:
        if len(shards) == 1:
            shards[0].replace(target)
        else:
            _merge(shards, target)
    except InputError:
        raise
    except Exception as error:  # ArrayRecord raises types of its own
        raise InputError(f"{target}: can't be written ({in_short(error)})") from error


def _merge(shards: Sequence[Path], target: Path) -> None:
    with (
        atomic_file(target) as temporary,
        contextlib.closing(ArrayRecordWriter(str(temporary), "group_size:1")) as writer,
    ):
        for path in shards:
            with ArrayRecordDataSource([str(path)]) as records:
                for index in range(len(records)):
                    writer.write(records[index])


def clear(folder: Path) -> None:
    """Deletes what a finished dataset doesn't need."""
    for path in (folder / PARTS, *folder.glob(f"{_METADATA}*")):
        shutil.rmtree(path, ignore_errors=True)
