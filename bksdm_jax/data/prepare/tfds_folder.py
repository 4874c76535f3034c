"""Parts of chunks become a TFDS set: shards under their final names, then the metadata that makes them one."""

import contextlib
import dataclasses
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
from bksdm_jax.data.prepare.shards import SPLITS, TRAIN, part_path

INFO = "dataset_info.json"
"""The file that makes a folder a set; it is written last."""
PARTS = "parts"
"""The folder in it where the parts of chunks wait."""
_SUFFIX = "array_record"
_METADATA = ".metadata"
_MERGED = 1000  # examples of a validation shard, to which small parts are joined


@dataclasses.dataclass(frozen=True)
class _Shard:
    """Parts that become one file."""

    parts: list[Path]
    examples: int


def write_set(
    folder: Path,
    name: str,
    description: str,
    features: tfds.features.FeaturesDict,
    records: Sequence[Mapping[str, Any]],
    split_names: Sequence[str] = SPLITS,
) -> None:
    """Makes `folder` a set of the parts of all chunks; goes on where a killed call stopped.

    Args:
        folder: of the set; in its `PARTS` are the parts.
        name: of the set, and of its files.
        description: of the set.
        features: of an example.
        records: `splits` of each chunk, in their order.
        split_names: of the set.

    Raises:
        InputError: a part is missing, or the folder can't be written.
    """
    template = naming.ShardedFileTemplate(data_dir=folder, dataset_name=name, filetype_suffix=_SUFFIX)
    infos, parts = [], folder / PARTS
    for split in split_names:
        shards = _shards(parts, split, [record["splits"][split][0] for record in records])
        if not shards:
            continue
        split_template = template.replace(split=split)
        for index, shard in enumerate(shards):
            path = Path(split_template.sharded_filepath(shard_index=index, num_shards=len(shards)))
            _place(shard.parts, path)
        infos.append(
            splits.SplitInfo(
                name=split,
                shard_lengths=[shard.examples for shard in shards],
                num_bytes=sum(record["splits"][split][1] for record in records),
                filename_template=split_template,
            )
        )
    try:
        with tempfile.TemporaryDirectory(dir=folder, prefix=_METADATA) as temporary:
            for info in infos:  # it looks at the names of the data's files beside what it writes
                for path in info.filepaths:
                    (Path(temporary) / path.name).touch()
            tfds.folder_dataset.write_metadata(
                data_dir=temporary,
                features=features,
                split_infos=infos,
                filename_template=template,
                check_data=False,
                version="1.0.0",
                description=description,
            )
            for file in sorted(Path(temporary).glob("*.json"), key=lambda path: path.name == INFO):
                file.replace(folder / file.name)
        clear(folder)
    except OSError as error:
        raise InputError(f"{folder}: can't be written ({error.strerror or error})") from error


def read_part(path: Path, place: int) -> bytes:
    """An example of a part, serialized."""
    with ArrayRecordDataSource([str(path)]) as records:
        return records[place]


def _shards(parts: Path, split: str, counts: Sequence[int]) -> list[_Shard]:
    """Training parts one by one, others joined until they have enough."""
    shards: list[_Shard] = []
    for index, count in enumerate(counts):
        if not count:
            continue
        path = part_path(parts, index, split)
        if split != TRAIN and shards and shards[-1].examples < _MERGED:
            shards[-1] = _Shard([*shards[-1].parts, path], shards[-1].examples + count)
        else:
            shards.append(_Shard([path], count))
    return shards


def _place(parts: Sequence[Path], target: Path) -> None:
    """One part is renamed, several are joined; what a killed call has done already stays."""
    if not parts[0].exists() and target.exists():
        return
    missing = next((path for path in parts if not path.exists()), None)
    if missing is not None:
        raise InputError(f"{missing}: gone; delete {missing.parent.parent} and prepare the set anew")
    try:
        if len(parts) == 1:
            parts[0].replace(target)
        else:
            _join(parts, target)
    except InputError:
        raise
    except Exception as error:  # ArrayRecord raises types of its own
        raise InputError(f"{target}: can't be written ({in_short(error)})") from error


def _join(parts: Sequence[Path], target: Path) -> None:
    with (
        atomic_file(target) as temporary,
        contextlib.closing(ArrayRecordWriter(str(temporary), "group_size:1")) as writer,
    ):
        for path in parts:
            with ArrayRecordDataSource([str(path)]) as records:
                for index in range(len(records)):
                    writer.write(records[index])


def clear(folder: Path) -> None:
    """Takes away what a finished set doesn't need."""
    for path in (folder / PARTS, *folder.glob(f"{_METADATA}*")):
        shutil.rmtree(path, ignore_errors=True)
