"""What `launch.score` left in a workdir, read with tolerance for what is missing."""

import dataclasses
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.base.files import read_json

SCORES = "scores.json"
_MOST_BYTES = 2**22
_MOST_FACTS = 500
_MOST_LETTERS = 300


@dataclasses.dataclass(frozen=True)
class Entry:
    """A score with its interval; `low` and `high` are None where there is none, `interval` says how it was taken."""

    value: float
    low: float | None
    high: float | None
    interval: str


@dataclasses.dataclass(frozen=True)
class Scored:
    """A scored model.

    Attributes:
        folder: the scoring workdir.
        name: of the model; empty: unknown.
        images: how many were scored; None: unknown.
        pictures: the scored images' folder; None: unknown.
        protocol: name of it, or empty.
        departures: how the images depart from it.
        scores: metric -> score.
        groups: metric -> group -> score, such as attribute accuracy by kind of fact.
        parameters, macs, seconds: of the U-Net, of one call, per image; None: unknown.
        settings: of sampling, by dotted key.
        facts: everything else that decides comparability, by key: references, weights, versions.
    """

    folder: Path
    name: str
    images: int | None
    pictures: Path | None
    protocol: str
    departures: tuple[str, ...]
    scores: Mapping[str, Entry]
    groups: Mapping[str, Mapping[str, Entry]]
    parameters: float | None
    macs: float | None
    seconds: float | None
    settings: Mapping[str, Any]
    facts: Mapping[str, str]


def read_scores(folder: Path) -> Scored:
    """What is in `folder/scores.json`; keys that are missing or of another type count as unknown.

    Raises:
        InputError: there is no such file, it can't be read, or it has no scores in it.
    """
    path = folder / SCORES
    if not path.is_file():
        raise InputError(f"{folder}: no {SCORES}; expected a workdir of launch.score")
    found = read_json(path, _MOST_BYTES)
    scores = found.get("scores")
    if not isinstance(scores, dict) or not scores:
        raise InputError(f"{path}: scores is {shown(scores)}; expected a file of launch.score, with a value per metric")
    entries = {str(name): _entry(f"{path}: scores.{name}", entry) for name, entry in scores.items()}
    groups = {
        name: {group: _entry(f"{path}: scores.{name}.groups.{group}", one) for group, one in entry["groups"].items()}
        for name, entry in scores.items()
        if isinstance(entry.get("groups"), dict) and entry["groups"]
    }
    model, protocol = _object(found.get("model")), _object(found.get("protocol"))
    departures = protocol.get("departures")
    pictures = _text(found.get("folder"))
    images = _number(found.get("images"))
    settings = dict(_flat(_object(model.get("settings"))))
    kept = {key: found.get(key) for key in ("prompts_sha256", "reference", "extractors", "versions")}
    return Scored(
        folder=folder,
        name=_text(model.get("name")),
        images=None if images is None else int(images),
        pictures=Path(pictures) if pictures else None,
        protocol=_text(protocol.get("name")),
        departures=tuple(map(_text, departures)) if isinstance(departures, list) else (),
        scores=entries,
        groups=groups,
        parameters=_number(model.get("unet_parameters")),
        macs=_number(model.get("unet_macs")),
        seconds=_number(model.get("seconds_per_image")),
        settings=settings,
        facts={key: _text(value) for key, value in [*_flat(kept), *_flat({"settings": settings})][:_MOST_FACTS]},
    )


def _entry(where: str, entry: Any) -> Entry:
    value = _number(entry.get("value")) if isinstance(entry, dict) else None
    if value is None:
        raise InputError(f"{where} is {shown(entry)}; expected an object with a finite value; score the images again")
    low, high = _number(entry.get("low")), _number(entry.get("high"))
    return Entry(value, low, high, _text(entry.get("interval")))


def _object(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def _number(value: Any) -> float | None:
    known = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value if known and abs(value) <= sys.float_info.max else None  # an int may exceed all floats


def _text(value: Any) -> str:
    text = "" if value is None else str(value)
    return text if len(text) <= _MOST_LETTERS else f"{text[: _MOST_LETTERS - 3]}..."


def _flat(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """The values inside nested objects, by dotted key; `null` and empty ones are left out."""
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        elif value not in (None, "", []):
            yield f"{prefix}{key}", value
