"""Infers the architectures of a checkpoint in the original layout from the names and shapes of its weights.

Such a checkpoint has no config. Widths and blocks follow from the shapes; heads, activations and norms are taken from
SD 1.x if the text states have 768 channels, else from SD 2.x. The prediction type can't be inferred.
"""

import re
from collections.abc import Collection, Mapping

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.clip_json import clip_text_from_transformers, clip_text_to_transformers
from bksdm_jax.formats.original_names import CLIP, OPEN_CLIP, UNET, VAE, text_name
from bksdm_jax.formats.unet_json import unet_from_diffusers, unet_to_diffusers
from bksdm_jax.formats.vae_json import vae_from_diffusers, vae_to_diffusers
from bksdm_jax.models.clip import CLIPTextConfig
from bksdm_jax.models.unet_table import Stage, UNetConfig
from bksdm_jax.models.vae import VAEConfig

_V1_CONTEXT = 768
_HEAD_WIDTH = 64
_VIT_H_WIDTH, _VIT_H_LAYERS = 1024, 23  # as SD 2.x uses it
_OPEN_CLIP_ACTIVATION = "gelu"
_FOREIGN = {
    "conditioner.embedders.": "an SDXL checkpoint",
    f"{UNET}joint_blocks.": "an SD 3 checkpoint",
    f"{UNET}double_blocks.": "a Flux checkpoint",
    "double_blocks.": "a Flux transformer",
    "control_model.": "a ControlNet",
    "lora_": "a LoRA",
    "down_blocks.": "a U-Net alone, with Diffusers' names",
}
"""Beginning of a name -> the files that have such names."""
Table = Mapping[str, tuple[int, ...]]
"""Name -> shape."""


def infer_architectures(table: Table, source: str) -> tuple[UNetConfig, VAEConfig, CLIPTextConfig]:
    """U-Net, autoencoder and text encoder of a checkpoint in the original layout.

    Raises `InputError`, with `source`, if weights that SD 1.x and 2.x checkpoints have are missing, or the shapes are
    inconsistent.
    """
    for prefix, what in _FOREIGN.items():
        if any(name.startswith(prefix) for name in table):
            raise InputError(f"{source}: {what}; expected an SD 1.x or 2.x checkpoint in the original layout")
    try:
        unet, vae, text = _unet(table), _vae(table), _text(table)
    except (KeyError, ValueError, IndexError, StopIteration) as error:
        raise InputError(
            f"{source}: not a complete SD 1.x or 2.x checkpoint in the original layout"
            f"{f' (no {str(error)[:100]})' if str(error) else ''}; a U-Net or LoRA alone is not enough"
        ) from error
    # The config readers check the rest: divisibility by norm groups, mirrored stages.
    try:
        json = unet_to_diffusers(unet)
    except InputError as error:
        raise InputError(f"{source}: {error}") from error
    unet_from_diffusers(json, source)
    vae_from_diffusers(vae_to_diffusers(vae), source)
    clip_text_from_transformers(clip_text_to_transformers(text), source)
    return unet, vae, text


def is_second(text: CLIPTextConfig) -> bool:
    """Whether the text encoder is OpenCLIP's, as in SD 2.x, rather than CLIP's."""
    return text.activation == _OPEN_CLIP_ACTIVATION


def is_vit_h(text: CLIPTextConfig) -> bool:
    """Whether the text encoder has the width of ViT-H, as SD 2.x has."""
    return text.width == _VIT_H_WIDTH


def _unet(table: Table) -> UNetConfig:
    def has(name: str) -> bool:
        return f"{UNET}{name}" in table

    def width(block: str) -> int:
        return table[f"{UNET}{block}.out_layers.3.weight"][0]

    def one(ending: str) -> tuple[int, ...]:
        return next(shape for name, shape in table.items() if name.startswith(UNET) and name.endswith(ending))

    context = one("attn2.to_k.weight")[1]

    def pair(transformer: str) -> str:
        if not has(f"{transformer}.proj_in.weight"):
            return "R"
        numbers = _numbers(table, f"{transformer}.transformer_blocks")
        return "R" + "A" * (max(numbers, default=0) + 1)

    def stage(pairs: list[str], channels: int, resampler: bool) -> Stage:
        heads = 8 if context == _V1_CONTEXT else max(channels // _HEAD_WIDTH, 1)
        return Stage(channels, heads, tuple(pairs), resampler)

    down, pairs, channels = [], [], 0
    for i in _numbers(table, "input_blocks")[1:]:
        if has(f"input_blocks.{i}.0.op.weight"):
            down.append(stage(pairs, channels, True))
            pairs = []
        else:
            pairs.append(pair(f"input_blocks.{i}.1"))
            channels = width(f"input_blocks.{i}.0")
    down.append(stage(pairs, channels, False))
    up, pairs = [], []
    for i in _numbers(table, "output_blocks"):
        if has(f"output_blocks.{i}.0.out_layers.3.weight"):  # an upsampler may have a number of its own
            pairs.append(pair(f"output_blocks.{i}.1"))
            channels = width(f"output_blocks.{i}.0")
        if any(has(f"output_blocks.{i}.{k}.conv.weight") for k in (1, 2)):
            up.append(stage(pairs, channels, True))
            pairs = []
    up.append(stage(pairs, channels, False))
    middle = [i for i in _numbers(table, "middle_block") if has(f"middle_block.{i}.out_layers.3.weight")]
    mid = None
    if middle:
        channels = width("middle_block.0")
        mid = stage([pair("middle_block.1"), "R"][: len(middle)], channels, False)
    first = table[f"{UNET}input_blocks.0.0.weight"]
    return UNetConfig(
        down=tuple(down),
        mid=mid,
        up=tuple(up),
        stem_width=first[0],
        in_channels=first[1],
        out_channels=table[f"{UNET}out.2.weight"][0],
        context_width=context,
        linear_projection=len(one(".proj_in.weight")) == 2,
    )


def is_spaced(table: Collection[str]) -> bool:
    """Whether block numbers have gaps, or an upsampler has a number of its own."""
    for side in ("input_blocks", "output_blocks"):
        numbers = _numbers(table, side)
        if numbers != list(range(len(numbers))):
            return True
    return any(f"{UNET}output_blocks.{i}.0.out_layers.3.weight" not in table for i in numbers)


def _numbers(table: Collection[str], name: str) -> list[int]:
    """The numbers of the U-Net's blocks `name.N`."""
    pattern = re.compile(re.escape(f"{UNET}{name}.") + r"(\d+)\.")
    return sorted({int(match[1]) for match in map(pattern.match, table) if match})


def infer_vae(table: Table, source: str) -> VAEConfig:
    """The architecture of an autoencoder alone, in Diffusers' names or in the original ones without prefix.

    Raises `InputError`, with `source`, if the weights aren't an autoencoder's.
    """
    diffusers = any(name.startswith("encoder.down_blocks.") for name in table)
    try:
        vae = _vae(table, "", "down_blocks.{}.resnets.{}" if diffusers else "down.{}.block.{}")
    except (KeyError, IndexError) as error:
        some = ", ".join(f"{name[:80]} {shape}" for name, shape in list(table.items())[:3])
        missing = f"no {str(error)[:100]}, but {some or 'nothing'}"
        raise InputError(
            f"{source}: not an autoencoder of SD 1.x or 2.x in Diffusers' or the original layout ({missing})"
        ) from error
    return vae_from_diffusers(vae_to_diffusers(vae), source)


def _vae(table: Table, prefix: str = VAE, block: str = "down.{}.block.{}") -> VAEConfig:
    """`block`: the name of a ResNet of the encoder, for its stage and its number."""
    widths, layers = [], 0
    while (name := f"{prefix}encoder.{block.format(len(widths), 0)}.conv1.weight") in table:
        widths.append(table[name][0])
    while f"{prefix}encoder.{block.format(0, layers)}.conv1.weight" in table:
        layers += 1
    first, last = table[f"{prefix}encoder.conv_in.weight"], table[f"{prefix}decoder.conv_out.weight"]
    latent = table[f"{prefix}post_quant_conv.weight"][0]
    return VAEConfig(layers, first[1], last[0], tuple(widths), latent)


def text_names(second: bool) -> tuple[str, str, str]:
    """Names of the token and position embeddings, and of a layer's first MLP kernel with `{}` for the layer."""
    ours = ("embeddings.token_embedding", "embeddings.position_embedding", "encoder.layers.{}.mlp.fc1")
    tokens, positions, layer = (text_name(f"text_model.{module}.weight", second)[0] for module in ours)
    return tokens, positions, layer


def _text(table: Table) -> CLIPTextConfig:
    older = any(name.startswith(CLIP) for name in table)
    if not older and not any(name.startswith(OPEN_CLIP) for name in table):
        raise KeyError(f"text encoder: {CLIP}* or {OPEN_CLIP}*")
    tokens, positions, layer = text_names(second=not older)
    vocabulary, width = table[tokens]
    layers = 0
    while layer.format(layers) in table:
        layers += 1
    if not older:  # SD 2.x uses all of OpenCLIP's layers but the last, which some files omit: 23 of ViT-H's 24
        layers = min(layers, _VIT_H_LAYERS) if width == _VIT_H_WIDTH else layers - 1
    return CLIPTextConfig(
        vocab_size=vocabulary,
        width=width,
        mlp_width=table[layer.format(0)][0],
        layers=layers,
        heads=max(width // _HEAD_WIDTH, 1),
        positions=table[positions][0],
        max_length=table[positions][0],
        activation="quick_gelu" if older else _OPEN_CLIP_ACTIVATION,
    )
