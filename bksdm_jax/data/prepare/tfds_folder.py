"""Turns the chunks' shards into a TFDS dataset: files under their final names, then the metadata."""

import contextlib
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
from bksdm_jax.data.forms.pairs import SPLITS
from bksdm_jax.data.prepare.shards import TRAIN, shard_path
from bksdm_jax.data.sources import INFO

PARTS = "parts"
"""The subfolder with the chunks' shards until the dataset is complete."""
_SUFFIX = "array_record"
_METADATA = ".metadata"
_MERGED = 1000  # examples from which on a file of the validation split takes no further shard


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
        name, description: of the dataset; its files' names begin with `name`.
        features: of an example.
        records: for each chunk in order, examples and bytes by split under `splits`.
        split_names: the dataset's splits.

    Raises:
        InputError: a shard is missing, or the folder can't be written.
    """
    template = naming.ShardedFileTemplate(data_dir=folder, dataset_name=name, filetype_suffix=_SUFFIX)
    infos = []
    for split in split_names:
        counts = [record["splits"][split][0] for record in records]
        files, names = _files(split, counts), template.replace(split=split)
        if not files:
            continue
        for index, chunks in enumerate(files):
            path = Path(names.sharded_filepath(shard_index=index, num_shards=len(files)))
            _move([shard_path(folder / PARTS, chunk, split) for chunk in chunks], path)
        lengths = [sum(counts[chunk] for chunk in chunks) for chunks in files]
        size = sum(record["splits"][split][1] for record in records)
        infos.append(splits.SplitInfo(name=split, shard_lengths=lengths, num_bytes=size, filename_template=names))
    facts = {"features": features, "split_infos": infos, "filename_template": template, "description": description}
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=_METADATA) as temporary:
            for path in itertools.chain.from_iterable(info.filepaths for info in infos):
                (Path(temporary) / path.name).touch()  # TFDS looks for the data files beside the metadata
            tfds.folder_dataset.write_metadata(data_dir=temporary, check_data=False, version="1.0.0", **facts)
            # `INFO` comes last, so that an interrupted folder never looks finished.
            for file in sorted(Path(temporary).glob("*.json"), key=lambda path: path.name == INFO):
                file.replace(folder / file.name)
        clear(folder)
    except OSError as error:
        raise InputError(f"{folder}: can't be written ({error.strerror or error})") from error


def _files(split: str, counts: Sequence[int]) -> list[list[int]]:
    """The chunks in each file: one if of the training split; the few examples of others are merged into fewer files."""
    files: list[list[int]] = []
    for chunk, count in enumerate(counts):
        if count and split != TRAIN and files and sum(counts[other] for other in files[-1]) < _MERGED:
            files[-1].append(chunk)
        elif count:
            files.append([chunk])
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
