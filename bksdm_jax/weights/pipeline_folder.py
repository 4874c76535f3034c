"""A Stable Diffusion pipeline as a folder in Diffusers' layout, in and out."""

import dataclasses
import shutil
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from bksdm_jax.diffusion.schedule import ScheduleConfig, schedule_from_diffusers
from bksdm_jax.errors import InputError, one_of
from bksdm_jax.files import atomic_folder, read_json, write_json
from bksdm_jax.models.clip import CLIPTextConfig, clip_text_from_transformers, clip_text_parameter_shapes
from bksdm_jax.models.unet import UNetConfig, parameter_shapes
from bksdm_jax.models.unet_json import unet_from_diffusers, unet_to_diffusers
from bksdm_jax.models.vae import VAEConfig, vae_from_diffusers, vae_parameter_shapes
from bksdm_jax.weights.embedded import TEACHER, teacher_folder
from bksdm_jax.weights.files import WRITERS, read_weights
from bksdm_jax.weights.hub import hub_folder, is_hub_id
from bksdm_jax.weights.locate import choose_files, weight_files
from bksdm_jax.weights.tokenizer import Tokenizer, load_tokenizer


@dataclasses.dataclass(frozen=True)
class Network:
    """One network of a pipeline: its architecture, its parameters (nested by Flax names), its `config.json`."""

    config: Any
    params: dict[str, Any]
    json: dict[str, Any]


@dataclasses.dataclass(frozen=True)
class Architectures:
    """The networks of a pipeline without their weights, and the schedule they were trained for."""

    unet: UNetConfig
    vae: VAEConfig
    text_encoder: CLIPTextConfig
    schedule: ScheduleConfig


@dataclasses.dataclass(frozen=True)
class Pipeline:
    """A loaded pipeline folder; parameters are numpy arrays in the dtypes of the files.

    `unet_files` is where the U-Net's were.
    """

    folder: Path
    unet_files: tuple[Path, ...]
    unet: Network
    vae: Network
    text_encoder: Network
    tokenizer: Tokenizer
    schedule: ScheduleConfig

    def architectures(self) -> Architectures:
        """The same without weights."""
        return Architectures(self.unet.config, self.vae.config, self.text_encoder.config, self.schedule)

    def resolution(self) -> int:
        """Height and width in pixels that the U-Net was made for."""
        return (self.unet.config.sample_size or 64) * self.vae.config.factor


@dataclasses.dataclass(frozen=True)
class _Layout:
    stems: dict[str, str]
    parse: Callable[[Mapping[str, Any], str], UNetConfig | VAEConfig | CLIPTextConfig]
    shapes: Callable[[Any], dict[str, Any]]
    library: str
    cls: str


_DIFFUSERS_STEM = {
    ".safetensors": "diffusion_pytorch_model",
    ".msgpack": "diffusion_flax_model",
    ".bin": "diffusion_pytorch_model",
}
_TRANSFORMERS_STEM = {".safetensors": "model", ".msgpack": "flax_model", ".bin": "pytorch_model"}
_LAYOUTS = {
    "unet": _Layout(_DIFFUSERS_STEM, unet_from_diffusers, parameter_shapes, "diffusers", "UNet2DConditionModel"),
    "vae": _Layout(_DIFFUSERS_STEM, vae_from_diffusers, vae_parameter_shapes, "diffusers", "AutoencoderKL"),
    "text_encoder": _Layout(
        _TRANSFORMERS_STEM,
        clip_text_from_transformers,
        clip_text_parameter_shapes,
        "transformers",
        "CLIPTextModel",
    ),
}
FORMATS = {"safetensors": ".safetensors", "flax": ".msgpack"}
"""What a pipeline can be written as."""


def load_pipeline(name: str | Path, variant: str = "") -> Pipeline:
    """Reads a pipeline folder; each network from `.safetensors`, Flax `.msgpack` or PyTorch `.bin`, the first there is.

    Args:
        name: the folder, as `pipeline_folder` takes it.
        variant: `fp16`, `non_ema`, ...: the infix of weights' file names. A network that has none of this variant is
            read from its plain files.

    Raises:
        InputError: a component is missing, damaged, or doesn't fit its config.
    """
    folder = pipeline_folder(name)
    files = _all_files(folder, variant)
    networks = {name: _load_network(folder, name, paths) for name, paths in files.items()}
    pipeline = Pipeline(
        folder=folder,
        unet_files=files["unet"],
        tokenizer=load_tokenizer(folder / "tokenizer", networks["text_encoder"].config.max_length),
        schedule=load_schedule(folder),
        **networks,
    )
    _require_agreement(pipeline)
    return pipeline


def load_schedule(folder: Path) -> ScheduleConfig:
    """Reads `scheduler/scheduler_config.json` of a pipeline folder; raises `InputError` if it can't."""
    path = folder / "scheduler" / "scheduler_config.json"
    return schedule_from_diffusers(read_json(path), str(path))


def load_unet_config(name: str | Path) -> UNetConfig:
    """Reads the architecture of a pipeline's U-Net alone; raises `InputError` if it can't."""
    path = pipeline_folder(name) / "unet" / "config.json"
    return unet_from_diffusers(read_json(path), str(path))


def write_pipeline(
    target: Path,
    parent: Pipeline,
    unet: UNetConfig,
    unet_params: Mapping[str, Any],
    file_format: str,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a whole pipeline folder, atomically: the given U-Net, everything else from `parent`.

    Args:
        target: the folder; replaced if it exists.
        parent: where VAE, text encoder, tokenizer and scheduler come from.
        unet, unet_params: the U-Net.
        file_format: a key of `FORMATS`.
        extra: JSON files to put beside `model_index.json`, by name.

    Raises:
        InputError: Diffusers can't express the U-Net, the format is unknown, or the place can't be written.
    """
    networks = {
        "unet": Network(unet, dict(unet_params), unet_to_diffusers(unet)),
        "vae": parent.vae,
        "text_encoder": parent.text_encoder,
    }
    scheduler = read_json(parent.folder / "scheduler" / "scheduler_config.json")
    write_networks(target, networks, parent.folder / "tokenizer", scheduler, file_format, extra)


def write_networks(
    target: Path,
    networks: Mapping[str, Network],
    tokenizer: Path,
    scheduler: Mapping[str, Any],
    file_format: str,
    extra: Mapping[str, Any] | None = None,
) -> None:
    """Writes a whole pipeline folder, atomically, out of its parts.

    Args:
        target, file_format, extra: as for `write_pipeline`.
        networks: under `unet`, `vae`, `text_encoder`.
        tokenizer: the folder with its files.
        scheduler: its `scheduler_config.json`.

    Raises:
        InputError: the format is unknown, or the place can't be written.
    """
    suffix = suffix_of(file_format)
    prefix = "Flax" if suffix == ".msgpack" else ""
    scheduler = dict(scheduler)
    scheduler["_class_name"] = prefix + scheduler.get("_class_name", "PNDMScheduler").removeprefix("Flax")
    index: dict[str, Any] = {
        "_class_name": f"{prefix}StableDiffusionPipeline",
        "feature_extractor": [None, None],
        "safety_checker": [None, None],
        "requires_safety_checker": False,
        "tokenizer": ["transformers", "CLIPTokenizer"],
        "scheduler": ["diffusers", scheduler["_class_name"]],
    }
    if suffix == ".msgpack":
        del index["requires_safety_checker"]  # the Flax pipeline has no such option
    with atomic_folder(target) as temporary:
        for name, network in networks.items():
            layout = _LAYOUTS[name]
            (temporary / name).mkdir()
            WRITERS[suffix](temporary / name / f"{layout.stems[suffix]}{suffix}", network.params)
            json = dict(network.json)
            if layout.library == "diffusers":
                json["_class_name"] = f"{prefix}{layout.cls}"
            write_json(temporary / name / "config.json", json)
            index[name] = [layout.library, f"{prefix}{layout.cls}"]
        shutil.copytree(tokenizer, temporary / "tokenizer")
        (temporary / "scheduler").mkdir()
        write_json(temporary / "scheduler" / "scheduler_config.json", scheduler)
        write_json(temporary / "model_index.json", index)
        for name, value in (extra or {}).items():
            write_json(temporary / name, value)


def suffix_of(file_format: str) -> str:
    """The file ending of a format; an unknown one raises `InputError` with the known ones."""
    if file_format not in FORMATS:
        raise one_of("format", file_format, FORMATS)
    return FORMATS[file_format]


def pipeline_folder(name: str | Path, revision: str = "", variant: str = "") -> Path:
    """The folder that a name of a pipeline stands for.

    `shapes_teacher` is the one that comes with the package (`./shapes_teacher` one of the working directory's);
    `owner/name` a model of the hub, fetched unless it is in the hub's cache, where no folder `owner` is here; every
    other name is a folder's own.

    Args:
        name: of the pipeline.
        revision: branch, tag or commit of a model of the hub; empty: its default branch.
        variant: of the weights, as `load_pipeline` takes it: decides which files are fetched.

    Raises:
        InputError: no such folder or model, one without a pipeline's parts, or a damaged file of the package.
    """
    if str(name) == TEACHER:
        return teacher_folder()
    if isinstance(name, str) and is_hub_id(name):
        folder = hub_folder(name, revision, lambda names: _needed(names, variant))
    elif revision:
        raise InputError(f"revision: {revision!r} is for models of the hub, and {name} is a folder")
    else:
        folder = Path(name).expanduser().resolve()
    if not folder.is_dir():
        raise InputError(f"{folder}: no such pipeline folder")
    needed = [*_LAYOUTS, "tokenizer", "scheduler"]
    missing = [name for name in needed if not (folder / name).is_dir()]
    if missing:
        raise InputError(
            f"{folder}: not a whole pipeline folder, {', '.join(name + '/' for name in missing)} missing; "
            f"it needs {', '.join(name + '/' for name in needed)}"
        )
    return folder


def _load_network(folder: Path, name: str, files: Sequence[Path]) -> Network:
    layout = _LAYOUTS[name]
    config_path = folder / name / "config.json"
    json = read_json(config_path)
    config = layout.parse(json, str(config_path))
    return Network(config, read_weights(files, layout.shapes(config)), json)


def _needed(names: Collection[str], variant: str) -> list[str]:
    """Of a repository's file names those that `load_pipeline` reads."""
    needed = [name for name in names if name == "model_index.json" or name.split("/")[0] in ("tokenizer", "scheduler")]
    for network, layout in _LAYOUTS.items():
        inside = {name.removeprefix(f"{network}/") for name in names if name.startswith(f"{network}/")}
        files = choose_files(inside, layout.stems, variant) or choose_files(inside, layout.stems, "")
        needed += [f"{network}/{name}" for name in ("config.json", *files)]
    return needed


def _all_files(folder: Path, variant: str) -> dict[str, tuple[Path, ...]]:
    """The files of every network's weights, plain ones where there are none of the variant."""
    found = {name: weight_files(folder / name, layout.stems, variant) for name, layout in _LAYOUTS.items()}
    if variant and not any(found.values()):
        raise InputError(f"{folder}: no weights of variant {variant!r}; leave the variant empty for the plain ones")
    for name, layout in _LAYOUTS.items():
        found[name] = found[name] or weight_files(folder / name, layout.stems, "")
        if not found[name]:
            expected = " or ".join(f"{stem}{suffix}" for suffix, stem in layout.stems.items())
            raise InputError(f"{folder / name}: no weights; expected {expected}")
    return found


def _require_agreement(pipeline: Pipeline) -> None:
    unet, vae, text = pipeline.unet.config, pipeline.vae.config, pipeline.text_encoder.config
    for what, ours, key, theirs in (
        ("cross_attention_dim", unet.context_width, "text_encoder's hidden_size", text.width),
        ("in_channels", unet.in_channels, "vae's latent_channels", vae.latent_channels),
        ("out_channels", unet.out_channels, "vae's latent_channels", vae.latent_channels),
    ):
        if ours != theirs:
            raise InputError(f"{pipeline.folder}: the unet's {what} is {ours} but the {key} is {theirs}")
    if len(pipeline.tokenizer) > text.vocab_size:
        raise InputError(
            f"{pipeline.folder}: the tokenizer knows {len(pipeline.tokenizer)} tokens, "
            f"the text_encoder's vocab_size is {text.vocab_size}"
        )
