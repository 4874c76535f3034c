"""A single-file checkpoint in the original layout: its architecture, read off names and shapes, and its tensors.

Such a file has no config. Widths and blocks can be seen; heads, activations and norms are SD 1.x's where the text
states have 768 numbers, and SD 2.x's otherwise. Whether an SD 2.x model predicts noise or velocity can't be seen.
"""

import dataclasses
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bksdm_jax import trees
from bksdm_jax.errors import InputError
from bksdm_jax.models.clip import CLIPTextConfig, clip_text_parameter_shapes
from bksdm_jax.models.unet import Stage, UNetConfig, parameter_shapes
from bksdm_jax.models.vae import VAEConfig, vae_parameter_shapes
from bksdm_jax.weights import names
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
from bksdm_jax.weights.safetensors_file import index_safetensors
from bksdm_jax.weights.stored import StoredTensor

_V1_CONTEXT = 768
_HEAD_WIDTH = 64
Table = Mapping[str, StoredTensor]


@dataclasses.dataclass(frozen=True)
class SingleFile:
    """What a single-file checkpoint holds: architectures, and each network's tensors under Diffusers' names."""

    unet: UNetConfig
    vae: VAEConfig
    text_encoder: CLIPTextConfig
    tables: dict[str, dict[str, StoredTensor]]

    @property
    def second_generation(self) -> bool:
        """Whether it is an SD 2.x model: its text encoder is OpenCLIP's."""
        return self.text_encoder.activation == "gelu"


def index_single_file(path: Path) -> SingleFile:
    """Reads a `.safetensors` checkpoint's header.

    Raises:
        InputError: the file is damaged, or lacks something that SD 1.x and 2.x checkpoints have.
    """
    table = index_safetensors(path)
    try:
        unet, vae, text = _unet(table), _vae(table), _text(table)
    except (KeyError, ValueError, IndexError) as error:
        raise InputError(
            f"{path}: not a whole SD 1.x or 2.x checkpoint in the original layout (no {str(error)[:100]}); "
            "a U-Net or LoRA alone is not enough"
        ) from error
    tables = {
        "unet": _renamed(table, UNET, parameter_shapes(unet), unet_modules(unet)),
        "vae": _renamed(table, VAE, vae_parameter_shapes(vae), vae_modules(vae)),
        "text_encoder": _text_table(table, text),
    }
    return SingleFile(unet, vae, text, tables)


def _unet(table: Table) -> UNetConfig:
    def side(name: str) -> list[int]:
        pattern = re.compile(re.escape(f"{UNET}{name}.") + r"(\d+)\.")
        return sorted({int(match[1]) for match in map(pattern.match, table) if match})

    def has(name: str) -> bool:
        return f"{UNET}{name}" in table

    def width(block: str) -> int:
        return table[f"{UNET}{block}.out_layers.3.weight"].shape[0]

    key = next(name for name in table if name.startswith(UNET) and name.endswith("attn2.to_k.weight"))
    context = table[key].shape[1]

    def heads(channels: int) -> int:
        return 8 if context == _V1_CONTEXT else max(channels // _HEAD_WIDTH, 1)

    def stage(pairs: list[str], channels: int, sampler: bool) -> Stage:
        return Stage(channels, heads(channels), tuple(pairs), sampler)

    down, pairs, channels = [], [], 0
    for i in side("input_blocks")[1:]:
        if has(f"input_blocks.{i}.0.op.weight"):
            down.append(stage(pairs, channels, True))
            pairs = []
        else:
            pairs.append("RA" if has(f"input_blocks.{i}.1.proj_in.weight") else "R")
            channels = width(f"input_blocks.{i}.0")
    down.append(stage(pairs, channels, False))
    up, pairs = [], []
    for i in side("output_blocks"):
        attention = has(f"output_blocks.{i}.1.proj_in.weight")
        pairs.append("RA" if attention else "R")
        channels = width(f"output_blocks.{i}.0")
        if has(f"output_blocks.{i}.{2 if attention else 1}.conv.weight"):
            up.append(stage(pairs, channels, True))
            pairs = []
    up.append(stage(pairs, channels, False))
    middle = [i for i in side("middle_block") if has(f"middle_block.{i}.out_layers.3.weight")]
    mid = None
    if middle:
        channels = width("middle_block.0")
        mid = stage(["RA" if has("middle_block.1.proj_in.weight") else "R", "R"][: len(middle)], channels, False)
    first = table[f"{UNET}input_blocks.0.0.weight"].shape
    proj_in = next(name for name in table if name.startswith(UNET) and name.endswith(".proj_in.weight"))
    return UNetConfig(
        down=tuple(down),
        mid=mid,
        up=tuple(up),
        stem_width=first[0],
        in_channels=first[1],
        out_channels=table[f"{UNET}out.2.weight"].shape[0],
        context_width=context,
        linear_projection=len(table[proj_in].shape) == 2,
    )


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
    words = f"{CLIP}text_model.embeddings.token_embedding.weight"
    words, places = (
        (words, words.replace("token", "position"))
        if older
        else (
            f"{OPEN_CLIP}token_embedding.weight",
            POSITIONS[1],
        )
    )
    vocabulary, width = table[words].shape
    layer = (
        f"{CLIP}text_model.encoder.layers.{{}}.mlp.fc1.weight"
        if older
        else (f"{OPEN_CLIP}transformer.resblocks.{{}}.mlp.c_fc.weight")
    )
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
        activation="quick_gelu" if older else "gelu",
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
    if config.activation == "quick_gelu":
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
