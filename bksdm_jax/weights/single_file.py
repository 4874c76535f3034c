"""A single-file checkpoint in the original layout: its architecture, read off names and shapes, and its tensors.

Such a file has no config. Widths and blocks can be seen; heads, activations and norms are SD 1.x's where the text
states have 768 numbers, and SD 2.x's otherwise. Whether an SD 2.x model predicts noise or velocity can't be seen.
"""

import dataclasses
import math
import re
from collections.abc import Callable, Collection, Mapping
from pathlib import Path
from typing import Any

from bksdm_jax import trees
from bksdm_jax.diffusion.schedule import TARGETS, ScheduleConfig, schedule_to_diffusers
from bksdm_jax.errors import InputError, known_name
from bksdm_jax.models.clip import (
    CLIPTextConfig,
    clip_text_from_transformers,
    clip_text_parameter_shapes,
    clip_text_to_transformers,
)
from bksdm_jax.models.unet import Stage, UNetConfig, parameter_shapes
from bksdm_jax.models.unet_json import unet_from_diffusers, unet_to_diffusers
from bksdm_jax.models.vae import VAEConfig, vae_from_diffusers, vae_parameter_shapes, vae_to_diffusers
from bksdm_jax.weights import names
from bksdm_jax.weights.files import read_tensors
from bksdm_jax.weights.hub import hub_folder, is_hub_id
from bksdm_jax.weights.original_names import (
    CLIP,
    OPEN_CLIP,
    POSITIONS,
    UNET,
    VAE,
    open_clip_modules,
    open_clip_rows,
    original_name,
    unet_modules,
    vae_modules,
)
from bksdm_jax.weights.pipeline import Network, Pipeline
from bksdm_jax.weights.safetensors_file import index_safetensors
from bksdm_jax.weights.stored import StoredTensor
from bksdm_jax.weights.tokenizer import TOKENIZER_FILES, load_tokenizer

DEFAULT_TOKENIZER = "openai/clip-vit-large-patch14"
"""Both generations of Stable Diffusion have its vocabulary."""
_OPEN_CLIP_ACTIVATION, _SECOND_PAD = "gelu", "!"

_V1_CONTEXT = 768
_HEAD_WIDTH = 64
Table = Mapping[str, StoredTensor]


@dataclasses.dataclass(frozen=True)
class SingleFile:
    """What a single-file checkpoint holds: architectures, and each network's tensors under Diffusers' names."""

    unet: UNetConfig
    vae: VAEConfig
    text_encoder: CLIPTextConfig
    prediction: str
    tables: dict[str, dict[str, StoredTensor]]


def read_single_file(path: Path, tokenizer: str = "", prediction: str = "") -> Pipeline:
    """Reads a single-file checkpoint.

    Args:
        path: a `.safetensors` file.
        tokenizer: folder (its own or a pipeline's) or id on the hub of the tokenizer, which such a file doesn't hold;
            empty: `DEFAULT_TOKENIZER`. SD 2.x pads with `!`, whatever the tokenizer's files say.
        prediction: as `index_single_file` takes it.

    Raises:
        InputError: the file is damaged or no whole checkpoint, no tokenizer, or no prediction where one is needed.
    """
    found = index_single_file(path, prediction)
    schedule = ScheduleConfig(prediction=found.prediction)
    pad = _SECOND_PAD if _is_second(found.text_encoder) else ""
    folder = _tokenizer_folder(path, tokenizer)
    return Pipeline(
        place=path,
        unet_files=(path,),
        tokenizer=load_tokenizer(folder, found.text_encoder.max_length, pad),
        schedule=schedule,
        scheduler=schedule_to_diffusers(schedule),
        unet=_network(path, "unet", found.unet, found.tables, parameter_shapes, unet_to_diffusers),
        vae=_network(path, "vae", found.vae, found.tables, vae_parameter_shapes, vae_to_diffusers),
        text_encoder=_network(
            path,
            "text_encoder",
            found.text_encoder,
            found.tables,
            clip_text_parameter_shapes,
            clip_text_to_transformers,
        ),
    )


def read_single_unet(path: Path) -> Network:
    """Reads the U-Net of a single-file checkpoint; raises `InputError` if it can't."""
    found = index_single_file(path, "epsilon")
    return _network(path, "unet", found.unet, found.tables, parameter_shapes, unet_to_diffusers)


def _network(
    path: Path,
    name: str,
    config: Any,
    tables: Mapping[str, Mapping[str, StoredTensor]],
    shapes: Callable[[Any], dict[str, Any]],
    to_json: Callable[[Any], dict[str, Any]],
) -> Network:
    return Network(config, read_tensors(f"{path}, {name}", tables[name], shapes(config)), to_json(config))


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
    elif _is_second(text):
        raise InputError(
            f"{path}: an SD 2.x checkpoint, and its file doesn't say what it predicts; set prediction to epsilon "
            "(the base models, 512 pixels) or to v_prediction (those of 768 pixels)"
        )
    if prediction == "v_prediction":  # SD 2.x at 768 pixels; SD 2.1's attention overflows half precision
        unet = dataclasses.replace(unet, sample_size=96, upcast_attention=True)
    tables = {
        "unet": _renamed(table, UNET, parameter_shapes(unet), unet_modules(unet, _is_spaced(table))),
        "vae": _renamed(table, VAE, vae_parameter_shapes(vae), vae_modules(vae)),
        "text_encoder": _text_table(table, text),
    }
    return SingleFile(unet, vae, text, prediction or "epsilon", tables)


def infer_architectures(table: Mapping[str, Any], source: str) -> tuple[UNetConfig, VAEConfig, CLIPTextConfig]:
    """U-Net, autoencoder and text encoder of a checkpoint in the original layout, as its names and shapes tell them.

    Args:
        table: name -> anything with a `shape`.
        source: named by errors.

    Raises:
        InputError: something is missing that SD 1.x and 2.x checkpoints have, or no network has these shapes.
    """
    try:
        unet, vae, text = _unet(table), _vae(table), _text(table)
    except (KeyError, ValueError, IndexError, StopIteration) as error:
        raise InputError(
            f"{source}: not a whole SD 1.x or 2.x checkpoint in the original layout"
            f"{f' (no {str(error)[:100]})' if str(error) else ''}; a U-Net or LoRA alone is not enough"
        ) from error
    # Their own readers know what can't be: channels that groups don't divide, stages that don't mirror each other.
    unet_from_diffusers(unet_to_diffusers(unet), source)
    vae_from_diffusers(vae_to_diffusers(vae), source)
    clip_text_from_transformers(clip_text_to_transformers(text), source)
    return unet, vae, text


def _is_second(text: CLIPTextConfig) -> bool:
    """Whether the text encoder is OpenCLIP's, as in SD 2.x."""
    return text.activation == _OPEN_CLIP_ACTIVATION


def _unet(table: Table) -> UNetConfig:
    def has(name: str) -> bool:
        return f"{UNET}{name}" in table

    def width(block: str) -> int:
        return table[f"{UNET}{block}.out_layers.3.weight"].shape[0]

    def one(ending: str) -> tuple[int, ...]:
        return next(table[name].shape for name in table if name.startswith(UNET) and name.endswith(ending))

    context = one("attn2.to_k.weight")[1]

    def heads(channels: int) -> int:
        return 8 if context == _V1_CONTEXT else max(channels // _HEAD_WIDTH, 1)

    def stage(pairs: list[str], channels: int, sampler: bool) -> Stage:
        return Stage(channels, heads(channels), tuple(pairs), sampler)

    down, pairs, channels = [], [], 0
    for i in _numbers(table, "input_blocks")[1:]:
        if has(f"input_blocks.{i}.0.op.weight"):
            down.append(stage(pairs, channels, True))
            pairs = []
        else:
            pairs.append("RA" if has(f"input_blocks.{i}.1.proj_in.weight") else "R")
            channels = width(f"input_blocks.{i}.0")
    down.append(stage(pairs, channels, False))
    up, pairs = [], []
    for i in _numbers(table, "output_blocks"):
        if has(f"output_blocks.{i}.0.out_layers.3.weight"):  # with gaps in the numbers an upsampler may be alone
            pairs.append("RA" if has(f"output_blocks.{i}.1.proj_in.weight") else "R")
            channels = width(f"output_blocks.{i}.0")
        if any(has(f"output_blocks.{i}.{k}.conv.weight") for k in (1, 2)):
            up.append(stage(pairs, channels, True))
            pairs = []
    up.append(stage(pairs, channels, False))
    middle = [i for i in _numbers(table, "middle_block") if has(f"middle_block.{i}.out_layers.3.weight")]
    mid = None
    if middle:
        channels = width("middle_block.0")
        mid = stage(["RA" if has("middle_block.1.proj_in.weight") else "R", "R"][: len(middle)], channels, False)
    first = table[f"{UNET}input_blocks.0.0.weight"].shape
    return UNetConfig(
        down=tuple(down),
        mid=mid,
        up=tuple(up),
        stem_width=first[0],
        in_channels=first[1],
        out_channels=table[f"{UNET}out.2.weight"].shape[0],
        context_width=context,
        linear_projection=len(one(".proj_in.weight")) == 2,
    )


def _is_spaced(table: Table) -> bool:
    """Whether the input blocks' numbers have gaps."""
    numbers = _numbers(table, "input_blocks")
    return numbers != list(range(len(numbers)))


def _numbers(table: Table, name: str) -> list[int]:
    """Those that the U-Net's blocks called `name` have."""
    pattern = re.compile(re.escape(f"{UNET}{name}.") + r"(\d+)\.")
    return sorted({int(match[1]) for match in map(pattern.match, table) if match})


def _vae(table: Table) -> VAEConfig:
    widths, layers = [], 0
    while (name := f"{VAE}encoder.down.{len(widths)}.block.0.conv1.weight") in table:
        widths.append(table[name].shape[0])
    while f"{VAE}encoder.down.0.block.{layers}.conv1.weight" in table:
        layers += 1
    first, last = table[f"{VAE}encoder.conv_in.weight"].shape, table[f"{VAE}decoder.conv_out.weight"].shape
    latent = table[f"{VAE}post_quant_conv.weight"].shape[0]
    return VAEConfig(tuple(widths), layers, in_channels=first[1], out_channels=last[0], latent_channels=latent)


def _text(table: Table) -> CLIPTextConfig:
    older = f"{CLIP}text_model.embeddings.token_embedding.weight" in table
    words, places = f"{OPEN_CLIP}token_embedding.weight", POSITIONS[1]
    layer = f"{OPEN_CLIP}transformer.resblocks.{{}}.mlp.c_fc.weight"
    if older:
        words, places = (f"{CLIP}text_model.embeddings.{kind}_embedding.weight" for kind in ("token", "position"))
        layer = f"{CLIP}text_model.encoder.layers.{{}}.mlp.fc1.weight"
    vocabulary, width = table[words].shape
    layers = 0
    while layer.format(layers) in table:
        layers += 1
    return CLIPTextConfig(
        vocab_size=vocabulary,
        width=width,
        mlp_width=table[layer.format(0)].shape[0],
        layers=layers if older else layers - 1,  # SD 2.x takes the states before the last layer
        heads=max(width // _HEAD_WIDTH, 1),
        max_length=table[places].shape[0],
        activation="quick_gelu" if older else _OPEN_CLIP_ACTIVATION,
    )


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
    if not _is_second(config):
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
    if tensor.shape != (3 * shape[0], *shape[1:]) or tensor.strides is not None:
        return tensor
    offset = tensor.offset + third * math.prod(shape) * tensor.dtype.itemsize
    return dataclasses.replace(tensor, offset=offset, shape=shape)
