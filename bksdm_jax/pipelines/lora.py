"""A pipeline with LoRAs merged into its networks."""

import dataclasses
import hashlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from absl import logging

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError, in_one_line
from bksdm_jax.base.files import file_sha256
from bksdm_jax.base.finite import find_non_finite
from bksdm_jax.base.paths import local_path
from bksdm_jax.base.progress import QUIET, waiting
from bksdm_jax.formats import names
from bksdm_jax.formats.lora_file import ADAPTER_CONFIG, PEFT_STEM, SUFFIXES, LoraFile, read_lora_file, settings_beside
from bksdm_jax.formats.lora_names import TEXT, UNET, original_prefixes
from bksdm_jax.formats.low_rank import LowRank, from_adapter
from bksdm_jax.models.lora import Adapter, Adapters, merge
from bksdm_jax.pipelines.config import LoraOptions, require_loras, split_lora
from bksdm_jax.pipelines.hub import hub_folder, is_hub_id
from bksdm_jax.pipelines.pipeline import Architectures, Pipeline

_STEMS = (PEFT_STEM, "pytorch_lora_weights")  # of PEFT and Diffusers
_SHOWN = 2
_SDXL_TEXT, _SECOND_WIDTH = 2048, 1024
_OF_TEXT = ("attn2.to_k", "attn2.to_v")
"""Modules whose input is the text states: their width tells generations apart."""


@dataclasses.dataclass(frozen=True)
class Lora:
    """A LoRA that was read and fits a model.

    Attributes:
        name: as the user named it: a file, a folder or a hub id.
        weight: the factor of its updates.
        sha256: of its files.
        adapters: network -> its adapters.
    """

    name: str
    weight: float
    sha256: str
    adapters: Mapping[str, Adapters]

    def facts(self) -> dict[str, Any]:
        """What decides a run's result, for its `config.json`."""
        return {"sha256": self.sha256, "weight": self.weight}


@waiting("reading the LoRAs", QUIET)
def open_loras(options: LoraOptions, networks: Architectures, allow_non_finite: bool = False) -> tuple[Lora, ...]:
    """Finds and reads LoRAs, and fits them to a model.

    Raises:
        InputError: a LoRA doesn't exist, can't be read, is of another kind or for another model, or has tensors that
            have no place in the model (unless these are allowed).
    """
    require_loras(options)
    found = []
    for text in options.lora:
        name, weight = (text, 1.0) if local_path("lora", text).exists() else split_lora(text)
        paths = find_lora(name)
        original = original_prefixes(networks.denoiser)
        files = [read_lora_file(path, original, allow_non_finite) for path in paths]
        adapters = fitted(files, networks, options.allow_unplaced_lora)
        found.append(Lora(name, weight, lora_sha256(paths), adapters))
    return tuple(found)


@waiting("merging the LoRAs", QUIET)
def with_loras(pipeline: Pipeline, loras: Sequence[Lora]) -> Pipeline:
    """The pipeline with the LoRAs merged into its networks, in their order and in the dtypes of the weights.

    Raises `InputError` if a merged weight isn't finite where the model's is.
    """
    found = dict(pipeline.networks)
    for lora in loras:
        for network, adapters in lora.adapters.items():
            before = found[network]
            with np.errstate(over="ignore", invalid="ignore", divide="ignore"):  # told below
                after = dataclasses.replace(before, params=merge(before.params, adapters, lora.weight))
            if not pipeline.allow_non_finite:
                flat = trees.flatten(after.params)
                for path, count in find_non_finite({path: flat[path] for path in adapters}):
                    raise InputError(
                        f"lora: {lora.name}: {count} values of {network}'s {path} aren't finite once it is merged with "
                        f"weight {lora.weight:g}; choose a smaller weight, or weights of the model in float32"
                    )
            found[network] = after
    told = tuple(f"`{_public(lora.name)}` (SHA-256 {lora.sha256}) with weight {lora.weight:g}" for lora in loras)
    return dataclasses.replace(pipeline, networks=found, loras=(*pipeline.loras, *told))


def _public(name: str) -> str:
    """A LoRA's name without the user's folders."""
    return name if _on_hub(name) else name.rstrip("/").rpartition("/")[2]


def stored_layers(adapters: Mapping[str, Adapters]) -> dict[str, dict[str, LowRank]]:
    """Network -> adapters by path of the kernel, as `write_lora` takes them."""
    return {
        network: {names.torch_name(path).removesuffix(".weight"): from_adapter(one) for path, one in own.items()}
        for network, own in adapters.items()
    }


def lora_metadata(networks: Architectures) -> dict[str, str]:
    """What a LoRA file says of the model that it is for, in the words of kohya's scripts and of Stability."""
    width, predicts = networks.denoiser.context_width, networks.schedule.prediction_type
    second, velocity, side = width == _SECOND_WIDTH, predicts == "v_prediction", networks.resolution
    kind = ("v2-768-v" if velocity else "v2-512") if second else "v1"
    return {
        "ss_base_model_version": f"sd_v{1 + second}{'_v' if velocity else ''}",
        "ss_v2": str(second),
        "modelspec.sai_model_spec": "1.0.0",
        "modelspec.architecture": f"stable-diffusion-{kind}/lora",
        "modelspec.implementation": "diffusers",
        "modelspec.prediction_type": "v" if velocity else predicts,
        "modelspec.resolution": f"{side}x{side}",
    }


def find_lora(name: str) -> tuple[Path, ...]:
    """The files of a LoRA: a file, or those in a folder or a hub repository as PEFT and Diffusers write them.

    `owner/name/FILE` is a file on the hub.

    Raises `InputError` if there are none, or several that may be meant.
    """
    if hub := _on_hub(name):
        repo, file = hub
        folder = hub_folder(repo, "", lambda files: _wanted(files, name, file))
        if file and not (folder / file).is_file():
            raise InputError(f"lora: {name}: no such file on the hub; expected OWNER/NAME or OWNER/NAME/FILE")
        if file:
            return (folder / file,)
    else:
        path = local_path("lora", name)
        if path.is_file():
            return (path,)
        if not path.is_dir():
            raise InputError(f"lora: {name}: no such file, folder or hub id")
        folder = path
    inside = [path.relative_to(folder).as_posix() for path in (*folder.glob("*"), *folder.glob("*/*"))]
    return tuple(folder / file for file in _chosen(inside, str(folder)))


def _on_hub(name: str) -> tuple[str, str] | None:
    """Repository, and file if there is one, of a name on the hub; None: it is a path."""
    owner, _, rest = name.partition("/")
    repo, _, file = rest.partition("/")
    return (f"{owner}/{repo}", file) if is_hub_id(f"{owner}/{repo}") else None


def lora_sha256(paths: Sequence[Path]) -> str:
    """SHA-256 of a LoRA's files, with PEFT's settings beside them."""
    files = [*paths, *filter(None, map(settings_beside, paths))]
    digests = [file_sha256(path) for path in files]
    return digests[0] if len(digests) == 1 else hashlib.sha256("".join(digests).encode()).hexdigest()


def _chosen(files: Collection[str], source: str) -> list[str]:
    """The LoRA's files among all of a folder: of the usual name, in a folder per network, or the only one."""
    for folders in (("",), (f"{UNET}/", f"{TEXT}/")):
        for stem in _STEMS:
            usual = [[f"{folder}{stem}{suffix}" for suffix in SUFFIXES] for folder in folders]
            found = [next((name for name in some if name in files), "") for some in usual]
            if any(found):
                return [name for name in found if name]
    others = sorted(name for name in files if name.endswith(".safetensors") and "/" not in name)
    if len(others) != 1:
        some = f"{len(others)} files ({', '.join(others[:_SHOWN])}, ...)" if others else "no file"
        raise InputError(f"lora: {source}: {some} of a LoRA; give the file itself")
    return others


def _wanted(files: Collection[str], source: str, file: str) -> list[str]:
    """The files to download of all of a repository: this one, or the LoRA's, with its settings."""
    chosen = [name for name in files if name == file] if file else _chosen(files, source)
    settings = {f"{name.rpartition('/')[0]}/{ADAPTER_CONFIG}".lstrip("/") for name in chosen}
    return [*chosen, *(name for name in sorted(settings) if name in files)]


def fitted(files: Sequence[LoraFile], networks: Architectures, allow_unplaced: bool) -> dict[str, dict[str, Adapter]]:
    """Network -> adapters by path of the kernel, of all files together.

    Raises `InputError` if one is for another model, or a tensor has no place and that isn't allowed.
    """
    kernels = places(networks)
    found: dict[str, dict[str, Adapter]] = {}
    unplaced = {file.path: list(file.strangers) for file in files}
    misfits = []
    for file in files:
        for network, modules in file.layers.items():
            for module, layer in modules.items():
                path, shape = kernels.get(network, {}).get(module, ("", ()))
                if not path:
                    unplaced[file.path] += file.keys[network][module]
                    continue
                own = layer.fitted(shape)
                if path in found.get(network, {}):
                    raise InputError(f"{file.path}: {module} of the {network} is in another of its files too; keep one")
                if own is not None:
                    found.setdefault(network, {})[path] = own.adapter()
                    continue
                misfits.append(_misfit(file, network, module, layer, shape))
                if module.endswith(_OF_TEXT):
                    raise misfits[0]
    for path, keys in unplaced.items():
        tell_unplaced(path, keys, allow_unplaced and bool(found))  # a teacher's on a student has both
    if misfits:
        raise misfits[0]
    if not found:
        raise InputError(f"{files[0].path}: no tensors of a LoRA; expected such as ...lora_down.weight and .lora_up")
    return found


def places(networks: Architectures) -> dict[str, dict[str, tuple[str, tuple[int, ...]]]]:
    """Network -> module, by Diffusers' name -> path and PyTorch shape of a kernel that may have an adapter."""
    found: dict[str, dict[str, tuple[str, tuple[int, ...]]]] = {UNET: {}, TEXT: {}}
    for network, own in found.items():
        shapes = networks.kind.networks[network].parameter_shapes(networks.configs[network])
        for path, leaf in trees.flatten(shapes).items():
            if path.endswith("/kernel"):
                ((name, shape),) = names.torch_shapes({path: leaf}).items()
                own[name.removesuffix(".weight")] = path, shape
    return found


def _misfit(file: LoraFile, network: str, module: str, layer: LowRank, shape: tuple[int, ...]) -> InputError:
    ours, theirs = (f"{one[1]} -> {one[0]}" for one in (shape, layer.shape))
    if layer.shape[2:] != shape[2:]:
        ours, theirs = (f"{text}, kernel {one[2:]}" for text, one in ((ours, shape), (theirs, layer.shape)))
    what = "one for SDXL" if layer.shape[1] == _SDXL_TEXT else "made for another model"
    return InputError(
        f"{file.path}: {file.keys[network][module][0][:160]!r} is for {theirs} channels, but {module} of the model's "
        f"{network} has {ours}; this LoRA is {what}: use one of the model's generation"
    )


def tell_unplaced(path: Path, keys: Sequence[str], allow: bool, model: str = "model") -> None:
    """Raises `InputError`, or warns, of tensors without a place in the model, if there are any; all are logged.

    `model` is what it is called, `model` or `teacher`.
    """
    if not keys:
        return
    for key in keys:
        logging.info("%s: no place for %s", path, in_one_line(key))
    some = f"{', '.join(in_one_line(key, 120) for key in keys[:_SHOWN])}{', ...' if len(keys) > _SHOWN else ''}"
    said = f"{path}: {len(keys)} tensor(s) have no place in the {model}: {some}"
    if not allow:
        convert = "convert a LoRA of a student's teacher with launch.convert_lora; " if model == "model" else ""
        raise InputError(f"{said}; {convert}leave them out of one for this {model} with allow_unplaced_lora=yes")
    logging.warning("%s; they are left out", said)
