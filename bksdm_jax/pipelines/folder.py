"""Reads and writes pipelines as folders in Diffusers' layout."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.repocard import metadata_load

from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.formats.clip_json import loaded_in_float32
from bksdm_jax.formats.locate import choose_files, other_weights, weight_files
from bksdm_jax.formats.missing_blocks import CLASS, KEY, LIBRARY
from bksdm_jax.formats.scheduler_json import schedule_from_diffusers, scheduler_to_write
from bksdm_jax.formats.weights import WRITERS, read_weights
from bksdm_jax.pipelines.families import FAMILIES, STABLE_DIFFUSION, Family, NetworkType
from bksdm_jax.pipelines.passthrough import COMPONENTS, Extras, component_files, copy_components, read_components
from bksdm_jax.pipelines.pipeline import Architectures, Network, Pipeline, require_agreement, require_vocabulary
from bksdm_jax.pipelines.tokenizer import caption_length, load_tokenizer

COPIED_FORMATS = {".safetensors": (".safetensors", ".bin"), ".msgpack": (".msgpack",)}
"""Format of a folder's weights -> formats in which its readers accept a safety checker."""
_LICENCE = ("license", "license_name", "license_link")
INDEX, _CARD = "model_index.json", "README.md"
_MOST_CARD, _MOST_WORDS = 2**20, 200  # bytes of a card, characters of a licence entry


@dataclasses.dataclass(frozen=True)
class FolderModel:
    """A pipeline folder whose configs have been read, but not its weights.

    Attributes:
        path: the folder.
        variant: of the weights: the infix of their file names, such as `fp16` or `non_ema`.
        architectures: of its networks.
        json: network -> `config.json`; `scheduler` -> `scheduler_config.json`; `INDEX` -> `model_index.json`, if any.
        allow_non_finite: as in `ModelSource`.
    """

    path: Path
    variant: str
    architectures: Architectures
    json: Mapping[str, dict[str, Any]]
    allow_non_finite: bool = False

    @waiting("reading the model's weights", QUIET)
    def read(self, networks: Collection[str] | None = None) -> Pipeline:
        """Reads each network from `.safetensors`, PyTorch `.bin` or Flax `.msgpack`, in this order of preference.

        A network without files of the variant is read from those without a variant.

        Args:
            networks: those whose weights are read; the others get their config only. None: all.

        Raises:
            InputError: a component is missing, damaged, or doesn't match its config.
        """
        kind = self.architectures.kind
        files = self.files(kind.networks if networks is None else networks)
        pipeline = Pipeline(
            path=self.path,
            networks={name: self._network(name, files.get(name, ())) for name in kind.networks},
            tokenizers={
                folder: load_tokenizer(self.path / folder, self.architectures.configs[encoder].max_length)
                for folder, encoder in kind.tokenizers.items()
            },
            schedule=self.architectures.schedule,
            scheduler=self.json["scheduler"],
            components=read_components(self.path, self.json[INDEX], self.variant),
            licence=_licence(self.path / _CARD),
            family=self.architectures.family,
            allow_non_finite=self.allow_non_finite,
        )
        require_vocabulary(pipeline)
        return pipeline

    def read_denoiser(self) -> Network:
        """Reads only the U-Net; raises `InputError` like `read`."""
        name = self.architectures.kind.denoiser
        return self._network(name, self.files((name,))[name])

    def _network(self, name: str, files: Sequence[Path]) -> Network:
        config = self.architectures.configs[name]
        shapes = self.architectures.kind.networks[name].parameter_shapes
        params = read_weights(files, shapes(config), self.allow_non_finite) if files else {}
        return Network(config, params, self.json[name])

    def files(self, networks: Collection[str]) -> dict[str, tuple[Path, ...]]:
        """The weights files of these networks; those without a variant where a network doesn't have it.

        If the denoiser is among them, at least one must have the variant; `non_ema` exists only for the denoiser.
        """
        kind = self.architectures.kind
        stems = {name: kind.networks[name].stems for name in networks}
        found = {name: weight_files(self.path / name, stems[name], self.variant) for name in networks}
        if self.variant and kind.denoiser in networks and not any(found.values()):
            raise InputError(
                f"{self.path}: no weights of variant {self.variant!r}; leave variant empty for the default weights"
            )
        for name in networks:
            found[name] = found[name] or weight_files(self.path / name, stems[name], "")
            if not found[name]:
                expected = " or ".join(f"{stem}{suffix}" for suffix, stem in stems[name].items())
                hint = other_weights(self.path / name, stems[name])
                raise InputError(f"{self.path / name}: no weights; expected {expected}{hint}")
        return found


def open_folder(path: Path, variant: str = "", family: str = STABLE_DIFFUSION) -> FolderModel:
    """Reads the configs of a pipeline folder.

    Raises:
        InputError: no such folder, or a config is missing, unsupported, or doesn't fit the others.
    """
    kind = FAMILIES[family]
    _require_components(path, kind)
    found = {name: _read_config(path, name, network) for name, network in kind.networks.items()}
    file = path / "scheduler" / "scheduler_config.json"
    index = read_json(path / INDEX) if (path / INDEX).is_file() else {}
    scheduler = read_json(file) | _scheduler_class(index, path / INDEX)
    schedule = schedule_from_diffusers(scheduler, str(file))
    configs = {name: config for name, (_, config) in found.items()}
    for folder, encoder in kind.tokenizers.items():
        length = caption_length(path / folder, configs[encoder].positions)
        configs[encoder] = dataclasses.replace(configs[encoder], max_length=length)
    networks = Architectures(configs, schedule, family)
    require_agreement(networks, str(path))
    jsons = {name: json for name, (json, _) in found.items()}
    return FolderModel(path, variant, networks, jsons | {"scheduler": scheduler, INDEX: index})


def open_denoiser(path: Path, variant: str = "", family: str = STABLE_DIFFUSION) -> FolderModel:
    """Reads the config of a folder's denoiser alone: `read_denoiser` is all that works; raises as `open_folder`."""
    name = FAMILIES[family].denoiser
    json, config = _read_config(path, name, FAMILIES[family].networks[name])
    return FolderModel(path, variant, Architectures({name: config}, ScheduleConfig(), family), {name: json})


def _scheduler_class(index: Mapping[str, Any], source: Path) -> dict[str, str]:
    """The scheduler's class in `model_index.json`, which Diffusers takes whatever the scheduler's own file says."""
    entry = index.get("scheduler", [])
    if not isinstance(entry, list) or not all(isinstance(word, str) for word in entry):
        raise InputError(f"{source}: scheduler is {shown(entry)}; expected a library and a class")
    return {"_class_name": entry[1]} if len(entry) == 2 else {}


def _read_config(folder: Path, name: str, network: NetworkType) -> tuple[dict[str, Any], Any]:
    file = folder / name / "config.json"
    json = network.corrected(read_json(file), str(file))
    return json, network.from_json(json, str(file))


def _require_components(folder: Path, family: Family) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder or file")
    needed = (*family.networks, *family.tokenizers, "scheduler")
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        raise InputError(
            f"{folder}: not a complete pipeline folder: {', '.join(name + '/' for name in missing)} missing; "
            f"expected {', '.join(name + '/' for name in needed)}"
        )


def needed_files(
    names: Collection[str], variant: str, extras: Extras, networks: Collection[str] | None = None
) -> list[str]:
    """The files that a `FolderModel` reads.

    Args:
        names: all paths below the folder.
        variant: of the weights.
        extras: files needed besides.
        networks: those whose weights are needed, not just their config. None: all.
    """
    family = FAMILIES[STABLE_DIFFUSION]
    complete = {INDEX, *family.tokenizers, "scheduler", *([_CARD] if extras.card else [])}
    needed = [name for name in names if name.split("/")[0] in complete]
    for folder, network in family.networks.items():
        inside = {name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")}
        files: Sequence[str] = ()
        if networks is None or folder in networks:
            files = choose_files(inside, network.stems, variant) or choose_files(inside, network.stems, "")
        needed += [f"{folder}/{name}" for name in ("config.json", *files) if name in inside]
    return needed + (component_files(names, extras.components, variant) if extras.components else [])


def write_folder(folder: Path, pipeline: Pipeline, suffix: str, weights: bool = True) -> None:
    """Writes a pipeline to an empty folder; Diffusers can load it unless the denoiser `has_missing_blocks`.

    Args:
        folder: the folder.
        pipeline: the pipeline.
        suffix: `.safetensors`, or `.msgpack` for Diffusers' Flax classes.
        weights: write the networks' weights, not just their configs.
    """
    family = FAMILIES[pipeline.family]
    flax = suffix == ".msgpack"
    prefix = "Flax" if flax else ""
    scheduler = scheduler_to_write(pipeline.scheduler, pipeline.schedule, flax)
    index: dict[str, Any] = {
        "_class_name": f"{prefix}{family.pipeline_class}",
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    copied = copy_components(pipeline.components, folder, COPIED_FORMATS[suffix])
    index |= {name: [None, None] for name in COMPONENTS} | copied
    if not flax:  # the Flax pipeline has no such option
        index["requires_safety_checker"] = "safety_checker" in copied
    for name, network in family.networks.items():
        (folder / name).mkdir()
        if weights:
            WRITERS[suffix](folder / name / f"{network.stems[suffix]}{suffix}", pipeline.networks[name].params)
        json = dict(pipeline.networks[name].json)
        index[name] = [network.library, f"{prefix}{network.class_name}"]
        if json.get(KEY):
            json["_class_name"] = CLASS
            index[name] = [LIBRARY, CLASS]
        elif network.library == "diffusers":
            json["_class_name"] = f"{prefix}{network.class_name}"
        else:
            json = loaded_in_float32(json)
        write_json(folder / name / "config.json", json, allow_nan=True)
    for name, tokenizer in pipeline.tokenizers.items():
        tokenizer.write(folder / name)
        index[name] = ["transformers", "CLIPTokenizer"]
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler, allow_nan=True)
    write_json(folder / INDEX, index)


def _licence(card: Path) -> dict[str, str]:
    """The licence in a model card's metadata; empty if there is no readable metadata."""
    if not card.is_file() or card.stat().st_size > _MOST_CARD:
        return {}
    try:
        head = metadata_load(card) or {}
    except Exception:  # YAML parsers raise many types; a pipeline doesn't need a card
        return {}
    return {key: " ".join(head[key].split())[:_MOST_WORDS] for key in _LICENCE if isinstance(head.get(key), str)}
