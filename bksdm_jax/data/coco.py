"""Captions of COCO, a seeded choice of prompts among them, and lists of prompts that others have chosen."""

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.base.files import read_json
from bksdm_jax.base.paths import local_path
from bksdm_jax.data.tables import Prompt, read_prompts, read_table

RULE = (
    "images with captions ascending in id, captions of each ascending in id; "
    "u, v = numpy.random.default_rng(seed).random((2, images)); the images with the smallest u, ascending in u, and of "
    "each the caption number int(v * captions)"
)
"""How `choose_prompts` chooses."""
_MOST_JSON = 2**27  # bytes; captions_val2014.json has 32 MB, captions_train2017.json 92 MB
_MOST_NAME = 255


@dataclasses.dataclass(frozen=True)
class Coco:
    """A captions file.

    Attributes:
        path: the file.
        names: image id -> file name, of all images, ascending in id.
        captions: image id -> captions ascending in annotation id, of the images that have any, ascending in id.
    """

    path: Path
    names: Mapping[int, str]
    captions: Mapping[int, Sequence[str]]


def read_coco(path: Path) -> Coco:
    """Reads COCO's `captions_*.json`; captions are stripped, their line breaks become spaces, blank ones are left out.

    Raises `InputError` if it can't be read, has more than 128 MiB, lacks `images` or `annotations` or a key of one of
    them, has an id twice, a caption of an image that isn't in it, or no captions.
    """
    found = read_json(path, _MOST_JSON)
    names: dict[int, str] = {}
    for where, image in _entries(path, found, "images"):
        own = _value(path, where, image, "id", int)
        name = _value(path, where, image, "file_name", str)
        if own in names:
            raise InputError(f"{path}: {where}: id {own} is in it twice; expected each image once")
        if not _is_plain(name):
            raise InputError(f"{path}: {where}: file_name is {shown(name)}; expected a name without folders")
        names[own] = name
    twice = [name for name, count in Counter(names.values()).items() if count > 1]
    if twice:
        raise InputError(f"{path}: {twice[0]} is the file_name of several images; expected each once")
    captions: dict[int, list[tuple[int, str]]] = {}
    seen: set[int] = set()
    for where, annotation in _entries(path, found, "annotations"):
        own, image = (_value(path, where, annotation, key, int) for key in ("id", "image_id"))
        text = " ".join(_value(path, where, annotation, "caption", str).splitlines()).strip()
        if image not in names:
            raise InputError(f"{path}: {where}: image_id {image} isn't among its images")
        if own in seen:
            raise InputError(f"{path}: {where}: id {own} is in it twice; expected each annotation once")
        seen.add(own)
        if text:
            captions.setdefault(image, []).append((own, text))
    if not captions:
        raise InputError(f"{path}: no captions in its annotations; expected a file such as captions_val2014.json")
    ordered = {image: tuple(text for _, text in sorted(captions[image])) for image in sorted(captions)}
    return Coco(path, dict(sorted(names.items())), ordered)


def choose_prompts(coco: Coco, count: int, seed: int) -> list[Prompt]:
    """`count` captions, each of another image, as `RULE` says; `source` is the image's file name.

    A smaller count with the same seed gives the beginning of the list. Raises `InputError` if there are fewer images.
    """
    images = list(coco.captions)
    if count > len(images):
        raise InputError(f"count: {count} prompts of different images, but {coco.path} has captions of {len(images)}")
    first, second = np.random.default_rng(seed).random((2, len(images)))
    prompts = []
    for number in np.argsort(first, kind="stable")[:count]:
        own = coco.captions[images[number]]
        prompts.append(Prompt(own[int(second[number] * len(own))], coco.names[images[number]]))
    return prompts


def read_prompt_list(path: Path, coco: Coco | None) -> list[Prompt]:
    """A list that someone has chosen, as it is.

    Args:
        path: as for `read_prompts`, or a `.tsv` file with a column `caption`, such as MLPerf's; its file names are in
            `file_name`, or those of `image_id` in `coco`.
        coco: captions file; None: images are known by `file_name` only.

    Raises:
        InputError: the list can't be read, has a blank caption, or an `image_id` that `coco` doesn't know.
    """
    if path.suffix.lower() != ".tsv":
        prompts = read_prompts(path)
        for number, prompt in enumerate(prompts, start=1):
            if not prompt.text.strip():
                raise InputError(f"{path}: row {number} has no caption; expected one in each row")
        return prompts
    prompts = []
    rows = read_table(local_path("prompts", path), ("caption",), ("file_name", "image_id"), delimiter="\t")
    for number, row in enumerate(rows, start=1):
        if not row["caption"].strip():
            raise InputError(f"{path}: row {number} has no caption; expected one in each row")
        name = row.get("file_name", "")
        if not name and coco is not None and "image_id" in row:
            digits = row["image_id"].strip()
            known = coco.names.get(int(digits)) if digits.isascii() and digits.isdigit() and len(digits) < 20 else None
            if known is None:
                raise InputError(f"{path}: row {number}: image_id {shown(digits)} isn't an image of {coco.path}")
            name = known
        prompts.append(Prompt(row["caption"], name))
    return prompts


def _entries(path: Path, found: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
    """What a list of objects holds, with words that name each."""
    entries = found.get(key)
    if not isinstance(entries, list):
        what = "missing" if key not in found else shown(entries)
        raise InputError(f"{path}: {key} is {what}; expected a list, as in COCO's captions_val2014.json")
    named = [(f"{key}[{number}]", entry) for number, entry in enumerate(entries)]
    for where, entry in named:
        if not isinstance(entry, dict):
            raise InputError(f"{path}: {where} is {shown(entry)}; expected an object")
    return named


def _value(path: Path, where: str, entry: Mapping[str, Any], key: str, kind: type) -> Any:
    value = entry.get(key)
    if not isinstance(value, kind) or isinstance(value, bool):
        what = "missing" if key not in entry else shown(value)
        raise InputError(f"{path}: {where}: {key} is {what}; expected {'text' if kind is str else 'a whole number'}")
    if kind is str and ("\0" in value or any("\ud800" <= letter <= "\udfff" for letter in value)):
        raise InputError(f"{path}: {where}: {key} {shown(value)} isn't Unicode text; correct the file")
    return value


def _is_plain(name: str) -> bool:
    parts = PurePosixPath(name).parts, PureWindowsPath(name).parts
    return all(own == (name,) for own in parts) and name != ".." and name.isprintable() and len(name) <= _MOST_NAME
