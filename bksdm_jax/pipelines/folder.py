"""A pipeline as a folder in Diffusers' layout, in and out."""

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.repocard import metadata_load

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.formats.locate import choose_files, weight_files
from bksdm_jax.formats.scheduler_json import schedule_from_diffusers
from bksdm_jax.formats.weights import WRITERS, read_weights
from bksdm_jax.pipelines.families import FAMILIES, STABLE_DIFFUSION, Family
from bksdm_jax.pipelines.passthrough import (
    COMPONENTS,
    NO_EXTRAS,
    Extras,
    component_files,
    copy_components,
    read_components,
)
from bksdm_jax.pipelines.pipeline import Architectures, Network, Pipeline, require_agreement
from bksdm_jax.pipelines.tokenizer import load_tokenizer

COPIED_FORMATS = {".safetensors": (".safetensors", ".bin"), ".msgpack": (".msgpack",)}
"""The format of a written folder -> those in which the libraries that read it take a safety checker."""
_LICENCE = ("license", "license_name", "license_link")
_CARD = "README.md"
_MOST_CARD, _MOST_WORDS = 2**20, 200  # bytes of a card, letters of what it says of the licence


@dataclasses.dataclass(frozen=True)
class FolderModel:
    """A pipeline folder whose configs are read and whose weights are not.

    Attributes:
        path: the folder.
        variant: of the weights, `fp16`, `non_ema`, ...: the infix of their file names.
        architectures: of its networks.
        json: network -> its `config.json`; `scheduler` -> its `scheduler_config.json`.
    """

    path: Path
    variant: str
    architectures: Architectures
    json: Mapping[str, dict[str, Any]]

    def read(self, networks: Collection[str] | None = None) -> Pipeline:
        """Reads each network from `.safetensors`, Flax `.msgpack` or PyTorch `.bin`, the first there is.

        A network that has no files of the variant is read from its plain ones.

        Args:
            networks: those whose weights are read; the others have their config alone. None: all.

        Raises:
            InputError: a component is missing, damaged, or doesn't fit its config.
        """
        kind = self.architectures.kind
        files = self._files(kind.networks if networks is None else networks)
        pipeline = Pipeline(
            path=self.path,
            networks={name: self._network(name, files.get(name, ())) for name in kind.networks},
            tokenizers={
                folder: load_tokenizer(self.path / folder, self.architectures.configs[encoder].max_length)
                for folder, encoder in kind.tokenizers.items()
            },
            schedule=self.architectures.schedule,
            scheduler=self.json["scheduler"],
            denoiser_files=files.get(kind.denoiser, ()),
            components=read_components(self.path, self.variant),
            licence=_licence(self.path / _CARD),
            family=self.architectures.family,
        )
        require_agreement(pipeline)
        return pipeline

    def read_denoiser(self) -> Network:
        """Reads the U-Net alone; raises `InputError` as `read`."""
        name = self.architectures.kind.denoiser
        return self._network(name, self._files((name,))[name])

    def _network(self, name: str, files: Sequence[Path]) -> Network:
        config = self.architectures.configs[name]
        shapes = self.architectures.kind.networks[name].parameter_shapes
        return Network(config, read_weights(files, shapes(config)) if files else {}, self.json[name])

    def _files(self, networks: Collection[str]) -> dict[str, tuple[Path, ...]]:
        """The files of these networks' weights, plain ones where there are none of the variant.

        A variant that is nowhere is an error where the denoiser is among them: some, `non_ema`, are of it alone.
        """
        kind = self.architectures.kind
        stems = {name: kind.networks[name].stems for name in networks}
        found = {name: weight_files(self.path / name, stems[name], self.variant) for name in networks}
        if self.variant and kind.denoiser in networks and not any(found.values()):
            raise InputError(
                f"{self.path}: no weights of variant {self.variant!r}; leave the variant empty for the plain ones"
            )
        for name in networks:
            found[name] = found[name] or weight_files(self.path / name, stems[name], "")
            if not found[name]:
                expected = " or ".join(f"{stem}{suffix}" for suffix, stem in stems[name].items())
                raise InputError(f"{self.path / name}: no weights; expected {expected}")
        return found


def open_folder(path: Path, variant: str = "") -> FolderModel:
    """Reads the configs of a pipeline folder.

    Raises:
        InputError: no such folder, or a config is missing or can't be used.
    """
    family = FAMILIES[STABLE_DIFFUSION]
    _require_components(path, family)
    jsons, configs = {}, {}
    for name, network in family.networks.items():
        file = path / name / "config.json"
        jsons[name] = read_json(file)
        configs[name] = network.from_json(jsons[name], str(file))
    file = path / "scheduler" / "scheduler_config.json"
    jsons["scheduler"] = read_json(file)
    schedule = schedule_from_diffusers(jsons["scheduler"], str(file))
    return FolderModel(path, variant, Architectures(configs, schedule, STABLE_DIFFUSION), jsons)


def _require_components(folder: Path, family: Family) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such pipeline folder")
    needed = (*family.networks, *family.tokenizers, "scheduler")
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        raise InputError(
            f"{folder}: not a complete pipeline folder, {', '.join(name + '/' for name in missing)} missing; "
            f"it needs {', '.join(name + '/' for name in needed)}"
        )


def needed_files(
    names: Collection[str], variant: str, extras: Extras = NO_EXTRAS, networks: Collection[str] | None = None
) -> list[str]:
    """Of a repository's file names those that a `FolderModel` reads.

    Args:
        names: paths below the folder.
        variant: of the weights.
        extras: what a copy needs besides.
        networks: those whose weights are needed; of the others only the config. None: all.
    """
    family = FAMILIES[STABLE_DIFFUSION]
    whole = {"model_index.json", *family.tokenizers, "scheduler", *([_CARD] if extras.card else [])}
    needed = [name for name in names if name.split("/")[0] in whole]
    for folder, network in family.networks.items():
        inside = {name.removeprefix(f"{folder}/") for name in names if name.startswith(f"{folder}/")}
        files: Sequence[str] = ()
        if networks is None or folder in networks:
            files = choose_files(inside, network.stems, variant) or choose_files(inside, network.stems, "")
        needed += [f"{folder}/{name}" for name in ("config.json", *files) if name in inside]
    return needed + (component_files(names, extras.components, variant) if extras.components else [])


def write_folder(folder: Path, pipeline: Pipeline, suffix: str) -> None:
    """Fills an empty folder with a pipeline that Diffusers loads.

    Args:
        folder: where to.
        pipeline: what.
        suffix: `.safetensors`, or `.msgpack` for Diffusers' Flax classes.
    """
    family = FAMILIES[pipeline.family]
    flax = suffix == ".msgpack"
    prefix = "Flax" if flax else ""
    scheduler = dict(pipeline.scheduler)
    scheduler["_class_name"] = prefix + scheduler.get("_class_name", "PNDMScheduler").removeprefix("Flax")
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
        WRITERS[suffix](folder / name / f"{network.stems[suffix]}{suffix}", pipeline.networks[name].params)
        json = dict(pipeline.networks[name].json)
        if network.library == "diffusers":
            json["_class_name"] = f"{prefix}{network.class_name}"
        write_json(folder / name / "config.json", json)
        index[name] = [network.library, f"{prefix}{network.class_name}"]
    for name, tokenizer in pipeline.tokenizers.items():
        tokenizer.write(folder / name)
        index[name] = ["transformers", "CLIPTokenizer"]
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "model_index.json", index)


def _licence(card: Path) -> dict[str, str]:
    """What the head of a model card says of the licence; nothing where it has no readable head."""
    if not card.is_file() or card.stat().st_size > _MOST_CARD:
        return {}
    try:
        head = metadata_load(card) or {}
    except Exception:  # whatever its YAML parser raises: a pipeline does without a card
        return {}
    return {key: " ".join(head[key].split())[:_MOST_WORDS] for key in _LICENCE if isinstance(head.get(key), str)}
