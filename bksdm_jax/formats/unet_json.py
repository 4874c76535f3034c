"""`UNetConfig` to and from Diffusers' `config.json`."""

import re
from collections.abc import Mapping, Sequence
from typing import Any

from bksdm_jax.base.errors import InputError, finite_number, known_name, shown, true_or_false, whole_number
from bksdm_jax.formats.limits import MOST_BLOCKS, MOST_CHANNELS, MOST_LAYERS, MOST_PIXELS, MOST_STAGES
from bksdm_jax.formats.unet_depths import UP, depths_from_diffusers, depths_to_diffusers, shortest
from bksdm_jax.models.unet import TIME_IDS
from bksdm_jax.models.unet_table import AddedEmbedding, Stage, UNetConfig

# (side, whether there is attention) -> Diffusers' block type.
STAGE_TYPES = {
    ("down", True): "CrossAttnDownBlock2D",
    ("down", False): "DownBlock2D",
    ("up", True): "CrossAttnUpBlock2D",
    ("up", False): "UpBlock2D",
}
MID_TYPES = {"UNetMidBlock2DCrossAttn": ("RA", "R"), "UNetMidBlock2D": ("R",), None: ()}
_DEFAULT_MID = "UNetMidBlock2DCrossAttn"

# Options of Diffusers' class -> supported values.
_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "addition_embed_type": (None, "text_time"),
    "attention_type": ("default",),
    "center_input_sample": (False,),
    "class_embed_type": (None,),
    "class_embeddings_concat": (False,),
    "conv_in_kernel": (3,),
    "conv_out_kernel": (3,),
    "cross_attention_norm": (None,),
    "downsample_padding": (1,),
    "dual_cross_attention": (False,),
    "encoder_hid_dim": (None,),
    "encoder_hid_dim_type": (None,),
    "mid_block_only_cross_attention": (None, False),
    "mid_block_scale_factor": (1,),
    "num_class_embeds": (None,),
    "resnet_out_scale_factor": (1,),
    "resnet_skip_time_act": (False,),
    "resnet_time_scale_shift": ("default",),
    "time_cond_proj_dim": (None,),
    "time_embedding_act_fn": (None,),
    "time_embedding_dim": (None,),
    "time_embedding_type": ("positional",),
    "timestep_post_act": (None,),
}


def unet_from_diffusers(json: Mapping[str, Any], source: str = "config.json") -> UNetConfig:
    """Reads a config of Diffusers' PyTorch or Flax class; missing keys take Diffusers' defaults.

    Raises `InputError`, with `source`, for unsupported values.
    """
    for key, allowed in _FIXED.items():
        if key in json and json[key] not in allowed:
            known = " or ".join(map(repr, allowed))
            raise InputError(f"{source}: {key} is {shown(json[key])}; only {known} is supported")
    widths = _widths(json, source)
    count = len(widths)
    only_cross = json.get("only_cross_attention", False)
    if only_cross is not False and list(only_cross if isinstance(only_cross, list) else [True]) != [False] * count:
        raise InputError(f"{source}: only_cross_attention is {shown(only_cross)}; only False is supported")
    context = json.get("cross_attention_dim", 1280)
    if isinstance(context, (list, tuple)) and context and all(value == context[0] for value in context):
        context = context[0]

    def flag(key: str, default: bool) -> bool:
        value = json.get(key, default)
        return true_or_false(source, key, False if value is None else value)  # SDXL's upcast_attention is null

    def channels(key: str, value: Any) -> int:
        return whole_number(source, key, value, 1, MOST_CHANNELS)

    config = UNetConfig(
        **_stages(json, widths, source),
        stem_width=widths[0],
        in_channels=channels("in_channels", json.get("in_channels", 4)),
        out_channels=channels("out_channels", json.get("out_channels", 4)),
        context_width=None if context is None else channels("cross_attention_dim", context),
        added=_added(json, source),
        linear_projection=flag("use_linear_projection", False),
        upcast_attention=flag("upcast_attention", False),
        norm_groups=channels("norm_num_groups", json.get("norm_num_groups", 32)),
        norm_epsilon=finite_number(source, "norm_eps", json.get("norm_eps", 1e-5), 0, 1),
        flip_sin_to_cos=flag("flip_sin_to_cos", True),
        freq_shift=finite_number(source, "freq_shift", json.get("freq_shift", 0), -MOST_CHANNELS, MOST_CHANNELS),
        sample_size=_sample_size(json.get("sample_size"), source),
    )
    _require_divisible(config, source)
    blocks = sum(len(pair) for stage in config.stages().values() for pair in stage.pairs)
    if blocks > MOST_BLOCKS:
        raise InputError(f"{source}: {blocks} ResNets and transformer layers; expected at most {MOST_BLOCKS}")
    return config


def unet_to_diffusers(config: UNetConfig) -> dict[str, Any]:
    """The `config.json` of the same network as Diffusers' `UNet2DConditionModel`.

    Raises `InputError`, with the stage and the reason, if Diffusers' class can't express it.
    """
    _require_expressible(config)
    mid_pairs = _kinds(config.mid.pairs) if config.mid else ()
    json = {
        "_class_name": "UNet2DConditionModel",
        "act_fn": "silu",
        "attention_head_dim": shortest([stage.heads for stage in config.down]),
        "block_out_channels": [stage.width for stage in config.down],
        "center_input_sample": False,
        "cross_attention_dim": config.context_width,
        "down_block_types": [STAGE_TYPES["down", "A" in stage.pairs[0]] for stage in config.down],
        "downsample_padding": 1,
        "flip_sin_to_cos": config.flip_sin_to_cos,
        "freq_shift": int(config.freq_shift) if config.freq_shift == int(config.freq_shift) else config.freq_shift,
        "in_channels": config.in_channels,
        "layers_per_block": shortest([len(stage.pairs) for stage in config.down]),
        "mid_block_scale_factor": 1,
        "mid_block_type": next(name for name, pairs in MID_TYPES.items() if pairs == mid_pairs),
        "norm_eps": config.norm_epsilon,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.out_channels,
        "sample_size": config.sample_size,
        "up_block_types": [STAGE_TYPES["up", "A" in stage.pairs[0]] for stage in config.up],
        "upcast_attention": config.upcast_attention,
        "use_linear_projection": config.linear_projection,
    }
    if config.added is not None:
        json |= {
            "addition_embed_type": "text_time",
            "addition_time_embed_dim": config.added.time_width,
            "projection_class_embeddings_input_dim": config.added.width,
        }
    return json | depths_to_diffusers(config)


def require_flax_expressible(config: UNetConfig) -> None:
    """Raises `InputError` if Diffusers' Flax class, more limited than the PyTorch class, can't express this U-Net."""
    way_out = "Diffusers' Flax class can't express this student; write it with format safetensors"
    layers = [len(stage.pairs) for stage in config.down]
    if len(set(layers)) > 1:
        raise InputError(f"format: flax needs the same number of layers in every stage, not {layers}: {way_out}")
    if config.mid is not None and _kinds(config.mid.pairs) != MID_TYPES[_DEFAULT_MID]:
        raise InputError(f"format: flax doesn't support a mid block without attention: {way_out}")
    if UP in depths_to_diffusers(config):
        raise InputError(f"format: flax needs equal transformer depths in a stage and its mirrored stage: {way_out}")
    if config.norm_groups != 32:
        raise InputError(f"format: flax needs 32 norm groups, not {config.norm_groups}: {way_out}")


def _require_expressible(config: UNetConfig) -> None:
    if config.context_width is None:
        _refuse("cross_attention_dim", "it has no text conditioning")
    for name, stage in config.stages().items():
        if name != "mid_block" and set(_kinds(stage.pairs)) not in ({"RA"}, {"R"}):
            found = " ".join(_kinds(stage.pairs)) or "nothing"
            _refuse(name, f"a stage needs at least one layer, and attention in all of them or none; found {found}")
    if len(config.down) != len(config.up):
        _refuse("up_blocks", f"it has {len(config.up)} up stages and {len(config.down)} down stages")
    if config.down[0].width != config.stem_width:
        _refuse("down_blocks.0", f"conv_in has {config.stem_width} channels, the stage {config.down[0].width}")
    for i, (down, up) in enumerate(zip(config.down, reversed(config.up), strict=True)):
        name, last = f"up_blocks.{len(config.up) - 1 - i}", i == len(config.down) - 1
        if (up.width, up.heads) != (down.width, down.heads):
            _refuse(name, f"its {up.width} channels and {up.heads} heads differ from those of down_blocks.{i}")
        if len(up.pairs) != len(down.pairs) + 1:
            _refuse(name, f"it has {len(up.pairs)} layers, not one more than down_blocks.{i} ({len(down.pairs)})")
        if down.resampler == last:
            _refuse(f"down_blocks.{i}", "every down stage but the last must end with a downsampler")
        if up.resampler != (i > 0):
            _refuse(name, "every up stage but the last must end with an upsampler")
    if config.mid is not None:
        _require_mid(config.mid, config.down[-1])


def _require_mid(mid: Stage, last: Stage) -> None:
    if (kinds := _kinds(mid.pairs)) not in MID_TYPES.values():
        known = " or ".join("-".join("".join(pairs)) for pairs in MID_TYPES.values() if pairs)
        _refuse("mid_block", f"expected {known} or no mid block, found {'-'.join(''.join(kinds))}")
    if (mid.width, mid.heads) != (last.width, last.heads):
        _refuse("mid_block", "its channels or heads differ from the last down stage's")
    ours, theirs = sum(mid.depths), last.depths[0]
    if ours and theirs and ours != theirs:
        _refuse("mid_block", f"its transformer has {ours} layers, the first one of the last down stage {theirs}")


def _refuse(stage: str, reason: str) -> None:
    raise InputError(f"{stage}: Diffusers' UNet2DConditionModel can't express this student: {reason}")


def _kinds(pairs: Sequence[str]) -> tuple[str, ...]:
    """`RAA` -> `RA`: the kinds of block, without depths."""
    return tuple(re.sub("A+", "A", pair) for pair in pairs)


def _require_divisible(config: UNetConfig, source: str) -> None:
    for name, stage in config.stages().items():
        if stage.width % config.norm_groups:
            expected = f"{config.norm_groups} groups"
        elif any(stage.depths) and stage.width % stage.heads:
            expected = f"{stage.heads} heads (Diffusers stores head counts under attention_head_dim)"
        else:
            continue
        raise InputError(f"{source}: {name}: {stage.width} channels; expected a multiple of {expected}")


def _stages(json: Mapping[str, Any], widths: tuple[int, ...], source: str) -> dict[str, Any]:
    """The fields `down`, `mid` and `up` of `UNetConfig`."""
    count = len(widths)
    heads_key = "attention_head_dim" if json.get("num_attention_heads") is None else "num_attention_heads"
    heads = _per_stage(json, heads_key, 8, MOST_CHANNELS, count, source)
    layers = _per_stage(json, "layers_per_block", 2, MOST_LAYERS, count, source)
    mid_type = json.get("mid_block_type", _DEFAULT_MID)
    if mid_type is not None:
        known_name(source, "mid_block_type", mid_type, [name for name in MID_TYPES if name])
    down = [n * attends for n, attends in zip(layers, _types(json, "down", count, source), strict=True)]
    up = [(n + 1) * attends for n, attends in zip(reversed(layers), _types(json, "up", count, source), strict=True)]
    middle = MID_TYPES[mid_type]
    down_depths, mid_depths, up_depths = depths_from_diffusers(json, down, "RA" in middle, up, source)

    def stage(i: int, depths: tuple[int, ...], more: int, resampler: bool) -> Stage:
        pairs = tuple("R" + "A" * depth for depth in depths or (0,) * (layers[i] + more))
        return Stage(widths[i], heads[i], pairs, resampler)

    last = count - 1
    mid = tuple(pair.replace("A", "A" * sum(mid_depths)) for pair in middle)
    return {
        "down": tuple(stage(i, depths, 0, i < last) for i, depths in enumerate(down_depths)),
        "mid": Stage(widths[-1], heads[-1], mid, False) if mid else None,
        "up": tuple(stage(last - i, depths, 1, i < last) for i, depths in enumerate(up_depths)),
    }


def _added(json: Mapping[str, Any], source: str) -> AddedEmbedding | None:
    if json.get("addition_embed_type") is None:
        return None
    time_key, width_key = "addition_time_embed_dim", "projection_class_embeddings_input_dim"
    time_width = whole_number(source, time_key, json.get(time_key), 1, MOST_CHANNELS)
    least, most = TIME_IDS * time_width + 1, TIME_IDS * time_width + MOST_CHANNELS
    return AddedEmbedding(whole_number(source, width_key, json.get(width_key), least, most), time_width)


def _widths(json: Mapping[str, Any], source: str) -> tuple[int, ...]:
    widths = json.get("block_out_channels", (320, 640, 1280, 1280))
    if not isinstance(widths, (list, tuple)) or not widths:
        raise InputError(f"{source}: block_out_channels is {shown(widths)}; expected a list of channel counts")
    if len(widths) > MOST_STAGES:
        raise InputError(f"{source}: block_out_channels has {len(widths)} entries; expected at most {MOST_STAGES}")
    return tuple(whole_number(source, "block_out_channels", width, 1, MOST_CHANNELS) for width in widths)


def _types(json: Mapping[str, Any], side: str, count: int, source: str) -> tuple[bool, ...]:
    key = f"{side}_block_types"
    default = [*[STAGE_TYPES[side, True]] * 3, STAGE_TYPES[side, False]]  # from the highest resolution to the lowest
    types = json.get(key, default if side == "down" else default[::-1])
    known = {name: attention for (s, attention), name in STAGE_TYPES.items() if s == side}
    if not isinstance(types, (list, tuple)) or len(types) != count:
        raise InputError(
            f"{source}: {key} is {shown(types)}; expected {count} names, one per entry of block_out_channels"
        )
    return tuple(known[known_name(source, key, name, known)] for name in types)


def _sample_size(value: Any, source: str) -> int | None:
    """Diffusers takes a number or a pair; only square latents are supported here."""
    if isinstance(value, (list, tuple)) and len(value) == 2 and value[0] == value[1]:
        value = value[0]
    return None if value is None else whole_number(source, "sample_size", value, 1, MOST_PIXELS)


def _per_stage(json: Mapping[str, Any], key: str, default: int, most: int, count: int, source: str) -> tuple[int, ...]:
    value = json.get(key, default)
    values = list(value) if isinstance(value, (list, tuple)) else [value] * count
    if len(values) != count:
        raise InputError(f"{source}: {key} has {len(values)} entries; expected one number, or {count}")
    return tuple(whole_number(source, key, v, 1, most) for v in values)
