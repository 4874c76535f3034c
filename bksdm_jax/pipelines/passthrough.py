"""The components of a pipeline folder that are only copied: safety checker and feature extractor."""

import dataclasses
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path

from absl import logging

from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.formats.locate import SUFFIXES, TRANSFORMERS_STEMS, choose_files

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
        entry: its library and class, as in `model_index.json`.
        settings: its JSON file.
        weights: suffix -> files of its weights in this format, by the names that they get in a copy; None: it has no
            weights.
    """

    entry: list[str]
    settings: Path
    weights: Mapping[str, Mapping[str, Path]] | None


def component_files(names: Collection[str], formats: Collection[str], variant: str) -> list[str]:
    """The files of these components among `names`, with weights in the first available format of `formats`."""
    files = []
    for component, settings in _SETTINGS.items():
        inside = {name.removeprefix(f"{component}/") for name in names if name.startswith(f"{component}/")}
        weights: Collection[str] = ()
        if component in _WITH_WEIGHTS:
            found = (_weights(inside, suffix, variant) for suffix in SUFFIXES if suffix in formats)
            weights = next(filter(None, found), {}).values()
        files += [f"{component}/{name}" for name in (settings, *weights) if name in inside]
    return files


def read_components(folder: Path, variant: str) -> dict[str, Component]:
    """The components that `model_index.json` names; those with missing files are left out with a warning.

    Args:
        folder: a pipeline's.
        variant: of the weights, if there are any; they lose the infix in a copy.

    Raises:
        InputError: a damaged `model_index.json`.
    """
    index = folder / "model_index.json"
    entries = read_json(index) if index.is_file() else {}
    found = {}
    for name, settings in _SETTINGS.items():
        entry = entries.get(name)
        if not isinstance(entry, list) or len(entry) != 2 or not all(isinstance(word, str) for word in entry):
            continue
        inside = folder / name
        if not (inside / settings).is_file():
            logging.warning("%s: left out; model_index.json names it, but %s is missing", inside, settings)
            continue
        weights = None
        if name in _WITH_WEIGHTS:
            names = {path.name for path in inside.iterdir() if path.is_file()}
            files = {suffix: _weights(names, suffix, variant) for suffix in SUFFIXES}
            weights = {
                suffix: {new: inside / old for new, old in chosen.items()} for suffix, chosen in files.items() if chosen
            }
        found[name] = Component(entry, inside / settings, weights)
    return found


def copy_components(
    components: Mapping[str, Component], target: Path, formats: Collection[str]
) -> dict[str, list[str]]:
    """Copies settings and weights of components to a pipeline folder.

    Args:
        components: as returned by `read_components`.
        target: the folder.
        formats: accepted formats of weights; a component without them, or whose files are gone, is left out with a
            warning.

    Returns:
        name -> entry in `model_index.json`, for those copied.
    """
    copied = {}
    for name, component in components.items():
        files: Mapping[str, Path] = {}
        if component.weights is not None:
            found = (component.weights.get(suffix, {}) for suffix in SUFFIXES if suffix in formats)
            files = next(filter(None, found), {})
            if not files:
                logging.warning(
                    "%s: left out; it has no weights in %s", component.settings.parent, " or ".join(formats)
                )
                continue
        gone = [path for path in (component.settings, *files.values()) if not path.is_file()]
        if gone:
            logging.warning("%s: left out; %s no longer exists", component.settings.parent, gone[0].name)
            continue
        (target / name).mkdir()
        write_json(target / name / component.settings.name, read_json(component.settings))
        for new, path in files.items():
            shutil.copyfile(path, target / name / new)
        copied[name] = component.entry
    return copied


def _weights(names: Collection[str], suffix: str, variant: str) -> dict[str, str]:
    """The weights files of one format: name without variant -> name."""
    stem = {suffix: TRANSFORMERS_STEMS[suffix]}
    of_variant = choose_files(names, stem, variant) if variant else ()
    if len(of_variant) == 1:  # an index lists its shards by name, so shards can't be renamed
        return {f"{stem[suffix]}{suffix}": of_variant[0]}
    return {name: name for name in choose_files(names, stem, "")}
