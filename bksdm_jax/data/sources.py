"""Images with captions, wherever they lie: a folder of files, or a TFDS set."""

import dataclasses
import hashlib
import resource
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import tensorflow_datasets as tfds
from etils import epath
from PIL import Image

from bksdm_jax.base.distributed import barrier, is_first
from bksdm_jax.base.errors import InputError, in_short, one_of
from bksdm_jax.base.paths import AnyPath, read_bytes, to_path
from bksdm_jax.data.cached import IDENTITY, CachedExample
from bksdm_jax.data.decode import fit_square, open_image, to_rgb
from bksdm_jax.data.image_folder import read_image_folder
from bksdm_jax.shapes.world import ShapesWorld, build

_INFO = "dataset_info.json"  # what makes a folder a TFDS set


class Example(Protocol):
    """An image and its captions."""

    name: str
    texts: Sequence[str]

    def image(self) -> Image.Image:
        """RGB, upright; raises `InputError` if it can't be read."""


def data_folder(name: str | Path) -> epath.Path:
    """The folder that a name of data stands for.

    `shapes_world/demo` and `shapes_world/full` are written, unless they are there, where TFDS keeps its sets
    (`TFDS_DATA_DIR`, by default `~/tensorflow_datasets`); every other name is a folder's own, of this machine or a
    bucket (`gs://`).

    Raises:
        InputError: the set can't be written there, or the bucket not be reached.
    """
    prefix, _, config = str(name).partition("/")
    if prefix == ShapesWorld.name and config in ShapesWorld.builder_configs and not Path(name).exists():
        if not is_first():
            barrier("built")  # the first writes, and others find it there, or write it if their disk is another
        folder = build(Path(tfds.core.constants.DATA_DIR), config)
        if is_first():
            barrier("built")
        return epath.Path(folder)
    return to_path(name)


def open_examples(folder: AnyPath, split: str = "train") -> Sequence[Example | CachedExample]:
    """The examples of an image folder (`metadata.csv`), or of a split of a TFDS set written as ArrayRecord.

    Args:
        folder: the image folder, or the one that holds the set's `dataset_info.json`.
        split: of the TFDS set.

    Raises:
        InputError: neither is there, or it can't be read.
    """
    if (folder / _INFO).is_file():
        return TfdsExamples(folder, split)
    if folder.is_dir() and not (folder / "metadata.csv").exists():
        inner = next((found for depth in ("*", "*/*") for found in sorted(folder.glob(f"{depth}/{_INFO}"))), None)
        if inner is not None:
            raise InputError(f"{folder}: a TFDS set is named by the folder of its version, here {inner.parent}")
        raise InputError(
            f"{folder / 'metadata.csv'}: can't be read, there is none, and no {_INFO} of a TFDS set either; "
            "launch.prepare makes sets out of other tables and of archives"
        )
    return read_image_folder(folder)


@dataclasses.dataclass(frozen=True)
class First(Sequence[Example | CachedExample]):
    """The first `count` of some examples."""

    examples: Sequence[Example | CachedExample]
    count: int

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> Example | CachedExample:
        if not 0 <= index < self.count:
            raise IndexError(f"{self.count} examples, none at {index}")
        return self.examples[index]


def is_cached(examples: Sequence[Example | CachedExample]) -> bool:
    """Whether these are cached latents."""
    return isinstance(examples, TfdsExamples) and examples.cached


def is_set(examples: Sequence[Example | CachedExample]) -> bool:
    """Whether these are of a TFDS set, which may have several splits."""
    return isinstance(examples, TfdsExamples)


def has_split(examples: Sequence[Example | CachedExample], split: str) -> bool:
    """Whether the TFDS set that these are of has that split too."""
    return isinstance(examples, TfdsExamples) and split in examples.splits


def square_image(
    example: Example, resolution: int, where: tuple[float, float] = (0.5, 0.5), mirror: bool = False
) -> np.ndarray:
    """An example's image by `fit_square`, whose arguments these are: uint8 [resolution, resolution, 3].

    Raises:
        InputError: it can't be read, or is too narrow to be enlarged.
    """
    image = example.image()
    try:
        return fit_square(image, resolution, where, mirror)
    except ValueError as error:
        raise InputError(f"{example.name}: {error}") from error


def fingerprint(folder: AnyPath) -> str:
    """SHA-256 that tells one set of examples from another: of the table, or of what the TFDS set says of itself."""
    names = (_INFO, IDENTITY) if (folder / _INFO).is_file() else ("metadata.csv",)
    contents = (read_bytes(path) for path in map(folder.joinpath, names) if path.is_file())
    return hashlib.sha256(b"".join(contents)).hexdigest()


def open_set(folder: AnyPath) -> tfds.core.DatasetBuilder:
    """A TFDS set, by the folder with its `dataset_info.json`; raises `InputError` if it can't be opened."""
    try:
        return tfds.builder_from_directory(folder)
    except Exception as error:  # TFDS raises whatever its parsers do
        raise InputError(f"{folder}: TFDS can't open this set ({in_short(error)})") from error


class TfdsExamples(Sequence[Example | CachedExample]):
    """A split of a TFDS set with `image` and `text`, or of cached latents (`cached`), read record by record."""

    def __init__(self, folder: AnyPath, split: str) -> None:
        builder = open_set(folder)
        if split not in builder.info.splits:
            raise one_of("split", split, builder.info.splits)
        self.splits = tuple(builder.info.splits)
        self.cached = "moments" in builder.info.features
        if not self.cached:
            _require_pairs(folder, builder.info.features)
        # The file's bytes, which Pillow decodes in half the time.
        decoders = None if self.cached else {"image": tfds.decode.SkipDecoding()}
        _allow_open(len(builder.info.splits[split].filepaths))
        try:
            self._records: Sequence[Any] = builder.as_data_source(split=split, decoders=decoders)
        except Exception as error:
            raise InputError(
                f"{folder}: not readable by random access ({in_short(error)}); write it as array_record"
            ) from error
        if not len(self._records):
            raise InputError(f"{folder}: split {split!r} is empty")
        self._place = f"{folder}: split {split!r}"

    def __len__(self) -> int:
        return len(self._records)

    def __getitem__(self, index: int) -> "TfdsExample | CachedExample":
        if not 0 <= index < len(self):
            raise IndexError(f"{self._place} has {len(self)} examples, none at {index}")
        try:
            record = self._records[index]
            return CachedExample(record) if self.cached else TfdsExample(record, f"{self._place}: example {index}")
        except Exception as error:  # ArrayRecord and the decoders raise many types
            raise InputError(f"{self._place}: example {index} can't be read ({in_short(error)})") from error


def _allow_open(files: int) -> None:
    """ArrayRecord keeps every file open that it has read of: asks for as many as the system grants."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = files + 512
    if soft != resource.RLIM_INFINITY and soft < wanted:
        most = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, most), hard))


def _require_pairs(folder: AnyPath, features: tfds.features.FeaturesDict) -> None:
    missing = {"image", "text"} - set(features)
    if missing:
        found = ", ".join(features)
        raise InputError(f"{folder}: no feature {min(missing)!r}; this set has {found}")
    image, text = features["image"], features["text"]
    if not isinstance(image, tfds.features.Image) or image.np_dtype != np.uint8 or image.shape[-1] not in (1, 3):
        raise InputError(f"{folder}: image is {image}; expected 8-bit pictures with 1 or 3 channels")
    several = isinstance(text, tfds.features.Sequence) and isinstance(text.feature, tfds.features.Text)
    if not several and not isinstance(text, tfds.features.Text):
        raise InputError(f"{folder}: text is {text}; expected captions")


class TfdsExample:
    """One record; `place` is where errors say it is."""

    def __init__(self, record: dict[str, Any], place: str) -> None:
        texts = record["text"] if isinstance(record["text"], list) else [record["text"]]
        self.texts = [text.decode() for text in texts]
        self.name = record["name"].decode() if "name" in record else place
        self._data: bytes = record["image"]
        self._place = place

    def image(self) -> Image.Image:
        """As `Example.image`."""
        try:
            return to_rgb(open_image(self._data))
        except ValueError as error:
            raise InputError(f"{self._place} can't be read ({error})") from error
