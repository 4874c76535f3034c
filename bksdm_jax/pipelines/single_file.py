"""A single-file checkpoint in the original layout (CompVis, Stability), in."""

import dataclasses
import math
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError, known_name
from bksdm_jax.diffusion.schedule import TARGETS, ScheduleConfig
from bksdm_jax.formats import names
from bksdm_jax.formats.clip_json import clip_text_to_transformers
from bksdm_jax.formats.infer import infer_architectures, is_second, is_spaced
from bksdm_jax.formats.original_names import (
    CLIP,
    POSITIONS,
    UNET,
    VAE,
    open_clip_modules,
    open_clip_rows,
    original_name,
    unet_modules,
    vae_modules,
)
from bksdm_jax.formats.safetensors_file import index_safetensors
from bksdm_jax.formats.scheduler_json import schedule_to_diffusers
from bksdm_jax.formats.stored import StoredTensor
from bksdm_jax.formats.unet_json import unet_to_diffusers
from bksdm_jax.formats.vae_json import vae_to_diffusers
from bksdm_jax.formats.weights import read_tensors
from bksdm_jax.models.clip import CLIPTextConfig, clip_text_parameter_shapes
from bksdm_jax.models.unet import UNetConfig, parameter_shapes
from bksdm_jax.models.vae import VAEConfig, vae_parameter_shapes
from bksdm_jax.pipelines.hub import hub_folder, is_hub_id
from bksdm_jax.pipelines.pipeline import NETWORKS, Network, Pipeline
from bksdm_jax.pipelines.tokenizer import TOKENIZER_FILES, load_tokenizer

DEFAULT_TOKENIZER = "openai/clip-vit-large-patch14"
"""Both generations of Stable Diffusion have its vocabulary."""
_SECOND_PAD = "!"

Table = Mapping[str, StoredTensor]
_FORMS: dict[str, tuple[Callable[[Any], dict[str, Any]], Callable[[Any], dict[str, Any]]]] = {
    "unet": (parameter_shapes, unet_to_diffusers),
    "vae": (vae_parameter_shapes, vae_to_diffusers),
    "text_encoder": (clip_text_parameter_shapes, clip_text_to_transformers),
}
"""Network -> its parameters' shapes, and its `config.json`, by its config."""


@dataclasses.dataclass(frozen=True)
class SingleFile:
    """What a single-file checkpoint holds: architectures, and each network's tensors under Diffusers' names."""

    unet: UNetConfig
    vae: VAEConfig
    text_encoder: CLIPTextConfig
    prediction: str
    tables: dict[str, dict[str, StoredTensor]]


def read_single_file(
    path: Path, tokenizer: str = "", prediction: str = "", networks: Collection[str] = NETWORKS
) -> Pipeline:
    """Reads a single-file checkpoint.

    Args:
        path: a `.safetensors` file.
        tokenizer: folder (its own or a pipeline's) or id on the hub of the tokenizer, which such a file doesn't hold;
            empty: `DEFAULT_TOKENIZER`. SD 2.x pads with `!`, whatever the tokenizer's files say.
        prediction: as `index_single_file` takes it.
        networks: those whose weights are read; the others have their config alone.

    Raises:
        InputError: the file is damaged or no whole checkpoint, no tokenizer, or no prediction where one is needed.
    """
    found = index_single_file(path, prediction)
    schedule = ScheduleConfig(prediction=found.prediction)
    pad = _SECOND_PAD if is_second(found.text_encoder) else ""
    folder = _tokenizer_folder(path, tokenizer)
    return Pipeline(
        place=path,
        unet_files=(path,),
        tokenizer=load_tokenizer(folder, found.text_encoder.max_length, pad),
        schedule=schedule,
        scheduler=schedule_to_diffusers(schedule),
        **{name: _network(path, name, found, name in networks) for name in NETWORKS},
    )


def read_single_unet(path: Path) -> Network:
    """Reads the U-Net of a single-file checkpoint; raises `InputError` if it can't."""
    found = index_single_file(path, "epsilon")
    return _network(path, "unet", found, weights=True)


def _network(path: Path, name: str, found: SingleFile, weights: bool) -> Network:
    config, (shapes, to_json) = getattr(found, name), _FORMS[name]
    params = read_tensors(f"{path}, {name}", found.tables[name], shapes(config)) if weights else {}
    return Network(config, params, to_json(config))


def _tokenizer_folder(path: Path, tokenizer: str) -> Path:
    name = tokenizer or DEFAULT_TOKENIZER
    try:
        if is_hub_id(name):
            folder = hub_folder(name, "", _tokenizer_files)
        else:
            folder = Path(name).expanduser().resolve()
            if not folder.is_dir():
                raise InputError(f"{folder}: no such folder")
    except InputError as error:
        raise InputError(
            f"{path}: a single file holds no tokenizer; set tokenizer to a folder or an id on the hub ({error})"
        ) from error
    return folder / "tokenizer" if (folder / "tokenizer").is_dir() else folder


def _tokenizer_files(names: Collection[str]) -> list[str]:
    """Those of a repository's files that are a tokenizer's: a pipeline's, or its own."""
    inside = [name for name in names if name.removeprefix("tokenizer/") in TOKENIZER_FILES and "/" in name]
    return inside or [name for name in names if name in TOKENIZER_FILES]


def index_single_file(path: Path, prediction: str = "") -> SingleFile:
    """Reads a `.safetensors` checkpoint's header.

    Args:
        path: the file.
        prediction: `epsilon` or `v_prediction`, what the U-Net predicts; may be empty for SD 1.x, whose models predict
            noise, and must be told for SD 2.x.

    Raises:
        InputError: the file is damaged, lacks something that SD 1.x and 2.x checkpoints have, or needs a prediction.
    """
    table = index_safetensors(path)
    unet, vae, text = infer_architectures(table, str(path))
    if prediction:
        known_name("config", "prediction", prediction, TARGETS)
    elif is_second(text):
        raise InputError(
            f"{path}: an SD 2.x checkpoint, and its file doesn't say what it predicts; set prediction to epsilon "
            "(the base models, 512 pixels) or to v_prediction (those of 768 pixels)"
        )
    if prediction == "v_prediction" and is_second(text):  # at 768 pixels; SD 2.1's attention overflows half precision
        unet = dataclasses.replace(unet, sample_size=96, upcast_attention=True)
    tables = {
        "unet": _renamed(table, UNET, parameter_shapes(unet), unet_modules(unet, is_spaced(table))),
        "vae": _renamed(table, VAE, vae_parameter_shapes(vae), vae_modules(vae)),
        "text_encoder": _text_table(table, text),
    }
    return SingleFile(unet, vae, text, prediction or "epsilon", tables)


def _renamed(table: Table, prefix: str, shapes: Mapping[str, Any], modules: Mapping[str, str]) -> dict[str, Any]:
    """The tensors below `prefix` under Diffusers' names; those that no module has keep their own."""
    rest = {name: tensor for name, tensor in table.items() if name.startswith(prefix)}
    found = {}
    for path, leaf in trees.flatten(shapes).items():
        name, shape = names.torch_name(path), names.torch_shape(path, tuple(leaf.shape))
        tensor = rest.pop(original_name(name, modules), None)
        if tensor is not None:
            one_by_one = tensor.shape == (*shape, 1, 1)  # a convolution in place of a linear layer: the same numbers
            found[name] = dataclasses.replace(tensor, shape=shape) if one_by_one else tensor
    return found | rest


def _text_table(table: Table, config: CLIPTextConfig) -> dict[str, StoredTensor]:
    if not is_second(config):
        inside = {name.removeprefix(CLIP): tensor for name, tensor in table.items() if name.startswith(CLIP)}
        return {name: tensor for name, tensor in inside.items() if names.current_name(name) is not None}
    found = {}
    modules, rows = open_clip_modules(config), open_clip_rows(config)
    for path, leaf in trees.flatten(clip_text_parameter_shapes(config)).items():
        name, shape = names.torch_name(path), names.torch_shape(path, tuple(leaf.shape))
        if name in rows:
            original, third = rows[name]
            if original in table:
                found[name] = _third(table[original], third, shape)
        else:
            original = POSITIONS[1] if name == POSITIONS[0] else original_name(name, modules)
            if original in table:
                found[name] = table[original]
    return found


def _third(tensor: StoredTensor, third: int, shape: tuple[int, ...]) -> StoredTensor:
    """Rows [third * n, (third + 1) * n) of a tensor of 3n rows; the tensor itself where the shapes don't agree."""
    if tensor.shape != (3 * shape[0], *shape[1:]):
        return tensor
    offset = tensor.offset + third * math.prod(shape) * tensor.dtype.itemsize
    return dataclasses.replace(tensor, offset=offset, shape=shape)
