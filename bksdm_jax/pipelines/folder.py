"""A Stable Diffusion pipeline as a folder in Diffusers' layout, in and out."""

import dataclasses
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from huggingface_hub.repocard import metadata_load

from bksdm_jax.base.errors import InputError
from bksdm_jax.base.files import read_json, write_json
from bksdm_jax.diffusion.schedule import ScheduleConfig
from bksdm_jax.formats.clip_json import clip_text_from_transformers
from bksdm_jax.formats.locate import DIFFUSERS_STEMS, TRANSFORMERS_STEMS, choose_files, weight_files
from bksdm_jax.formats.scheduler_json import schedule_from_diffusers
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.formats.vae_json import vae_from_diffusers
from bksdm_jax.formats.weights import WRITERS, read_weights
from bksdm_jax.models.clip import CLIPTextConfig, clip_text_parameter_shapes
from bksdm_jax.models.unet import UNetConfig, parameter_shapes
from bksdm_jax.models.vae import VAEConfig, vae_parameter_shapes
from bksdm_jax.pipelines.passthrough import NO_EXTRAS, PARTS, Extras, copy_parts, part_files, read_parts
from bksdm_jax.pipelines.pipeline import NETWORKS, Architectures, Network, Pipeline
from bksdm_jax.pipelines.tokenizer import load_tokenizer


@dataclasses.dataclass(frozen=True)
class _Layout:
    stems: dict[str, str]
    parse: Callable[[Mapping[str, Any], str], UNetConfig | VAEConfig | CLIPTextConfig]
    shapes: Callable[[Any], dict[str, Any]]
    library: str
    cls: str


_LAYOUTS = {
    "unet": _Layout(DIFFUSERS_STEMS, unet_from_diffusers, parameter_shapes, "diffusers", "UNet2DConditionModel"),
    "vae": _Layout(DIFFUSERS_STEMS, vae_from_diffusers, vae_parameter_shapes, "diffusers", "AutoencoderKL"),
    "text_encoder": _Layout(
        TRANSFORMERS_STEMS,
        clip_text_from_transformers,
        clip_text_parameter_shapes,
        "transformers",
        "CLIPTextModel",
    ),
}
_NEEDED = (*NETWORKS, "tokenizer", "scheduler")
COPIED_FORMATS = {".safetensors": (".safetensors", ".bin"), ".msgpack": (".msgpack",)}
"""The format of a written folder -> those in which the libraries that read it take a safety checker."""
_LICENCE = ("license", "license_name", "license_link")
_CARD = "README.md"
_MOST_CARD, _MOST_WORDS = 2**20, 200  # bytes of a card, letters of what it says of the licence


def require_pipeline_folder(folder: Path) -> None:
    """Raises `InputError` if `folder` lacks the folder of a network, of the tokenizer or of the scheduler."""
    if not folder.is_dir():
        raise InputError(f"{folder}: no such pipeline folder")
    missing = [name for name in _NEEDED if not (folder / name).is_dir()]
    if missing:
        raise InputError(
            f"{folder}: not a whole pipeline folder, {', '.join(name + '/' for name in missing)} missing; "
            f"it needs {', '.join(name + '/' for name in _NEEDED)}"
        )


def read_pipeline_folder(folder: Path, variant: str = "", networks: Collection[str] = NETWORKS) -> Pipeline:
    """Reads a pipeline folder; each network from `.safetensors`, Flax `.msgpack` or PyTorch `.bin`, the first there is.

    Args:
        folder: in Diffusers' layout.
        variant: `fp16`, `non_ema`, ...: the infix of weights' file names. A network that has none of this variant is
            read from its plain files.
        networks: those whose weights are read; the others have their config alone.

    Raises:
        InputError: a component is missing, damaged, or doesn't fit its config.
    """
    files = _files(folder, variant, networks)
    found = {name: _read_network(folder, name, files.get(name, ())) for name in NETWORKS}
    scheduler, schedule = _read_scheduler(folder)
    return Pipeline(
        place=folder,
        unet_files=files.get("unet", ()),
        tokenizer=load_tokenizer(folder / "tokenizer", found["text_encoder"].config.max_length),
        schedule=schedule,
        scheduler=scheduler,
        parts=read_parts(folder, variant),
        licence=_licence(folder / _CARD),
        **found,
    )


def read_network(folder: Path, name: str, variant: str = "") -> Network:
    """Reads one network of a pipeline folder, as `read_pipeline_folder` does."""
    return _read_network(folder, name, _files(folder, variant, (name,))[name])


def read_architectures(folder: Path) -> Architectures:
    """Reads the configs of a pipeline folder, and no weights; raises `InputError` if it can't."""
    return Architectures(
        **{name: _read_config(folder, name)[1] for name in _LAYOUTS}, schedule=_read_scheduler(folder)[1]
    )


def read_unet_config(folder: Path) -> UNetConfig:
    """Reads the architecture of the U-Net alone; raises `InputError` if it can't."""
    return _read_config(folder, "unet")[1]


def needed_files(
    names: Collection[str], variant: str, extras: Extras = NO_EXTRAS, networks: Collection[str] = NETWORKS
) -> list[str]:
    """Of a repository's file names those that `read_pipeline_folder` reads.

    Args:
        names: paths below the folder.
        variant: of the weights.
        extras: what a copy needs besides.
        networks: those whose weights are needed; of the others only the config.
    """
    whole = {"model_index.json", "tokenizer", "scheduler", *([_CARD] if extras.card else [])}
    needed = [name for name in names if name.split("/")[0] in whole]
    for network, layout in _LAYOUTS.items():
        inside = {name.removeprefix(f"{network}/") for name in names if name.startswith(f"{network}/")}
        files: Sequence[str] = ()
        if network in networks:
            files = choose_files(inside, layout.stems, variant) or choose_files(inside, layout.stems, "")
        needed += [f"{network}/{name}" for name in ("config.json", *files) if name in inside]
    return needed + (part_files(names, extras.parts, variant) if extras.parts else [])


def write_pipeline_folder(folder: Path, pipeline: Pipeline, suffix: str) -> None:
    """Fills an empty folder with a pipeline that Diffusers loads.

    Args:
        folder: where to.
        pipeline: what.
        suffix: `.safetensors`, or `.msgpack` for Diffusers' Flax classes.
    """
    flax = suffix == ".msgpack"
    prefix = "Flax" if flax else ""
    scheduler = dict(pipeline.scheduler)
    scheduler["_class_name"] = prefix + scheduler.get("_class_name", "PNDMScheduler").removeprefix("Flax")
    index: dict[str, Any] = {
        "_class_name": f"{prefix}StableDiffusionPipeline",
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    copied = copy_parts(pipeline.parts, folder, COPIED_FORMATS[suffix])
    index |= {name: [None, None] for name in PARTS} | copied
    if not flax:  # the Flax pipeline has no such option
        index["requires_safety_checker"] = "safety_checker" in copied
    for name, layout in _LAYOUTS.items():
        network = getattr(pipeline, name)
        (folder / name).mkdir()
        WRITERS[suffix](folder / name / f"{layout.stems[suffix]}{suffix}", network.params)
        json = dict(network.json)
        if layout.library == "diffusers":
            json["_class_name"] = f"{prefix}{layout.cls}"
        write_json(folder / name / "config.json", json)
        index[name] = [layout.library, f"{prefix}{layout.cls}"]
    pipeline.tokenizer.write(folder / "tokenizer")
    (folder / "scheduler").mkdir()
    write_json(folder / "scheduler" / "scheduler_config.json", scheduler)
    write_json(folder / "model_index.json", index)


def _read_network(folder: Path, name: str, files: Sequence[Path]) -> Network:
    json, config = _read_config(folder, name)
    return Network(config, read_weights(files, _LAYOUTS[name].shapes(config)) if files else {}, json)


def _read_config(folder: Path, name: str) -> tuple[dict[str, Any], Any]:
    path = folder / name / "config.json"
    json = read_json(path)
    return json, _LAYOUTS[name].parse(json, str(path))


def _read_scheduler(folder: Path) -> tuple[dict[str, Any], ScheduleConfig]:
    path = folder / "scheduler" / "scheduler_config.json"
    json = read_json(path)
    return json, schedule_from_diffusers(json, str(path))


def _files(folder: Path, variant: str, networks: Collection[str]) -> dict[str, tuple[Path, ...]]:
    """The files of these networks' weights, plain ones where there are none of the variant.

    A variant that is nowhere is an error where the U-Net is among them: there are some, `non_ema`, of it alone.
    """
    found = {name: weight_files(folder / name, _LAYOUTS[name].stems, variant) for name in networks}
    if variant and "unet" in networks and not any(found.values()):
        raise InputError(f"{folder}: no weights of variant {variant!r}; leave the variant empty for the plain ones")
    for name in networks:
        stems = _LAYOUTS[name].stems
        found[name] = found[name] or weight_files(folder / name, stems, "")
        if not found[name]:
            expected = " or ".join(f"{stem}{suffix}" for suffix, stem in stems.items())
            raise InputError(f"{folder / name}: no weights; expected {expected}")
    return found


def _licence(card: Path) -> dict[str, str]:
    """What the head of a model card says of the licence; nothing where it has no readable head."""
    if not card.is_file() or card.stat().st_size > _MOST_CARD:
        return {}
    try:
        head = metadata_load(card) or {}
    except Exception:  # whatever its YAML parser raises: a card is no part that a pipeline needs
        return {}
    return {key: " ".join(head[key].split())[:_MOST_WORDS] for key in _LICENCE if isinstance(head.get(key), str)}
