"""The components of a pipeline folder that are only copied: safety checker and feature extractor."""

import dataclasses
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from absl import logging

from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.formats.clip_json import loaded_in_float32
from bksdm_jax.formats.locate import TRANSFORMERS_STEMS, choose_files

_SETTINGS = {"safety_checker": "config.json", "feature_extractor": "preprocessor_config.json"}
COMPONENTS = tuple(_SETTINGS)
"""Their folders."""
_WITH_WEIGHTS = ("safety_checker",)


@dataclasses.dataclass(frozen=True)
class Extras:
    """Files of a pipeline folder that are wanted besides those needed to run it.

    Attributes:
        card: its `README.md`.
        components: formats (suffixes) in which the weights of `COMPONENTS` are wanted; empty: no components.
    """

    card: bool = False
    components: tuple[str, ...] = ()


NO_EXTRAS = Extras()


@dataclasses.dataclass(frozen=True)
class Component:
    """A component in a folder.

    Attributes:
        folder: its folder.
        entry: its library and class, as in `model_index.json`.
        weights: as returned by `_weights`; empty for a feature extractor.
    """

    folder: Path
    entry: list[str]
    weights: Mapping[str, Mapping[str, str]]


def component_files(names: Collection[str], formats: Collection[str], variant: str) -> list[str]:
    """The files of these components among `names`, with weights in the first available format of `formats`."""
    files = []
    for component, settings in _SETTINGS.items():
        inside = {name.removeprefix(f"{component}/") for name in names if name.startswith(f"{component}/")}
        weights = _first(_weights(component, inside, variant), formats)
        files += [f"{component}/{name}" for name in (settings, *weights.values()) if name in inside]
    return files


def read_components(folder: Path, index: Mapping[str, Any], variant: str) -> dict[str, Component]:
    """The components that a pipeline's `model_index.json` names; those without settings are left out with a warning.

    Weights of `variant`, if there are any, lose the infix in a copy.
    """
    found = {}
    for name, settings in _SETTINGS.items():
        entry = index.get(name)
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(word, str) for word in entry):
            continue
        inside = folder / name
        if not (inside / settings).is_file():
            logging.warning("%s: left out; model_index.json names it, but %s is missing", inside, settings)
            continue
        names = {path.name for path in inside.iterdir() if path.is_file()}
        found[name] = Component(inside, entry, _weights(name, names, variant))
    return found


def copy_components(
    components: Mapping[str, Component], target: Path, formats: Collection[str]
) -> dict[str, list[str]]:
    """Copies settings and weights of components to a pipeline folder.

    Args:
        components: as returned by `read_components`.
        target: the folder.
        formats: accepted formats of weights, the preferred ones first; a component without them, or whose files are
            gone, is left out with a warning.

    Returns:
        name -> entry in `model_index.json`, for those copied.
    """
    copied = {}
    for name, component in components.items():
        settings, weights = _SETTINGS[name], _first(component.weights, formats)
        if name in _WITH_WEIGHTS and not weights:
            logging.warning("%s: left out; it has no weights in %s", component.folder, " or ".join(formats))
            continue
        gone = [file for file in (settings, *weights.values()) if not (component.folder / file).is_file()]
        if gone:
            logging.warning("%s: left out; %s no longer exists", component.folder, gone[0])
            continue
        (target / name).mkdir()
        json = read_json(component.folder / settings)
        json = loaded_in_float32(json) if name in _WITH_WEIGHTS else json
        write_json(target / name / settings, json, allow_nan=True)
        for new, old in weights.items():
            shutil.copyfile(component.folder / old, target / name / new)
        copied[name] = component.entry
    return copied


def _weights(component: str, names: Collection[str], variant: str) -> dict[str, dict[str, str]]:
    """Format -> the files of a component's weights in it: name in a copy, which has no variant -> name."""
    found = {}
    for suffix, stem in TRANSFORMERS_STEMS.items() if component in _WITH_WEIGHTS else ():
        of_variant = choose_files(names, {suffix: stem}, variant) if variant else ()
        plain = choose_files(names, {suffix: stem}, "")
        # An index lists its shards by name, so shards can't be renamed.
        found[suffix] = {f"{stem}{suffix}": of_variant[0]} if len(of_variant) == 1 else {name: name for name in plain}
    return found


def _first(weights: Mapping[str, Mapping[str, str]], formats: Collection[str]) -> Mapping[str, str]:
    """The weights in the first available format."""
    return next((weights[suffix] for suffix in formats if weights.get(suffix)), {})
