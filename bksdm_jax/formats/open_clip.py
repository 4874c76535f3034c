"""OpenCLIP's layout of CLIP: `open_clip_config.json`, names of weights, and architectures inferred from shapes."""

import re
from collections.abc import Mapping
from typing import Any

from bksdm_jax.base.errors import InputError, finite_number, known_name, shown, true_or_false, whole_number
from bksdm_jax.formats import names
from bksdm_jax.formats.clip_json import clip_from_transformers, clip_to_transformers
from bksdm_jax.formats.limits import MOST_CHANNELS, MOST_LAYERS, MOST_PIXELS, MOST_POSITIONS, MOST_TOKENS
from bksdm_jax.formats.original_names import OPEN_CLIP, text_name
from bksdm_jax.formats.stored import StoredTensor
from bksdm_jax.models.clip import ACTIVATIONS, CLIPTextConfig
from bksdm_jax.models.clip_pair import CLIPConfig, CLIPVisionConfig, clip_parameter_shapes

_HEAD_WIDTHS = {1280: 80, 1408: 88, 1664: 104}
"""Width of the image tower -> of a head, for ViT-H, g and G; others have 64."""
_USUAL_HEAD = 64
_ONLY_GELU = (1408, 1664)  # ViT-g and G, which nobody trained with another
_NEUTRAL = {
    "pool_type": ("tok", "argmax"),
    "pos_embed_type": ("learnable",),
    "proj_type": ("linear",),
    **dict.fromkeys(("patch_dropout", "output_tokens", "final_ln_after_pool"), None),
    **dict.fromkeys(("attn_pooler_queries", "attn_pooler_heads", "pad_id", "eos_id"), None),  # of other pooling
}
"""Options of a tower -> values that leave the network as it is (None: all do); of other options, only empty ones."""
_VISION_KEYS = ("image_size", "patch_size", "width", "layers", "head_width", "mlp_ratio")
_TEXT_KEYS = ("context_length", "vocab_size", "width", "heads", "layers", "mlp_ratio")
_VISION_ENDS = {
    "embeddings.class_embedding": "class_embedding",
    "embeddings.patch_embedding.weight": "conv1.weight",
    "embeddings.position_embedding.weight": "positional_embedding",
    **{f"pre_layrnorm.{leaf}": f"ln_pre.{leaf}" for leaf in ("weight", "bias")},
    **{f"post_layernorm.{leaf}": f"ln_post.{leaf}" for leaf in ("weight", "bias")},
}
_PROJECTIONS = {"text_projection.weight": "text_projection", "visual_projection.weight": "visual.proj"}
"""Transformers' name -> OpenCLIP's, of matrices that OpenCLIP stores as [in, out]."""
_UNUSED = ("attn_mask", "input_resolution", "context_length", "vocab_size", "logit_bias")
_LAYER = re.compile(r"visual\.transformer\.resblocks\.(\d+)\.|transformer\.resblocks\.(\d+)\.")
Tensors = Mapping[str, StoredTensor]


def clip_from_open_clip(json: Mapping[str, Any], source: str = "open_clip_config.json") -> CLIPConfig:
    """Reads the `model_cfg` of `open_clip_config.json`; missing keys take OpenCLIP's defaults.

    Raises `InputError` for missing and unsupported values: only CLIP with two plain transformers is supported.
    """
    model = _part(json, "model_cfg", source)
    source = f"{source}: model_cfg"
    vision, text = (_part(model, part, source) for part in ("vision_cfg", "text_cfg"))
    if model.get("custom_text"):
        raise InputError(f"{source}: custom_text is {shown(model['custom_text'])}; only plain CLIP is supported")
    _require_plain(vision, _VISION_KEYS, f"{source}: vision_cfg")
    _require_plain(text, _TEXT_KEYS, f"{source}: text_cfg")
    quick = true_or_false(source, "quick_gelu", model.get("quick_gelu", False))
    activation = "quick_gelu" if quick else "gelu"
    config = CLIPConfig(
        _text_config(text, f"{source}: text_cfg", activation),
        _vision_config(vision, f"{source}: vision_cfg", activation),
        whole_number(source, "embed_dim", model.get("embed_dim"), 1, MOST_CHANNELS),
    )
    return clip_from_transformers(clip_to_transformers(config), source)  # which checks divisibility


def normalisation_from_open_clip(json: Mapping[str, Any], source: str = "open_clip_config.json") -> tuple[Any, Any]:
    """Mean and standard deviation in its `preprocess_cfg`, each None if it isn't there.

    Raises `InputError` if images are to be resized in another way than bicubically by their shorter side.
    """
    options = json.get("preprocess_cfg", {})
    options = options if isinstance(options, Mapping) else {}
    source = f"{source}: preprocess_cfg"
    for key, value in (("interpolation", "bicubic"), ("resize_mode", "shortest")):
        known_name(source, key, options.get(key, value), (value,))
    return options.get("mean"), options.get("std")


def infer_open_clip(table: Mapping[str, tuple[int, ...]], source: str, activation: str = "") -> CLIPConfig:
    """The architecture of a checkpoint in OpenCLIP's names, which has no config.

    Heads are 64 channels wide, in the image towers of ViT-H, g and G 80, 88 and 104.

    Args:
        table: name -> shape.
        source: for errors.
        activation: `gelu` or `quick_gelu`, which the weights don't tell. Empty: `gelu` for ViT-g and G, else an error.

    Raises:
        InputError: not such a checkpoint, or the activation isn't known.
    """
    try:
        width, _, patch, _ = table["visual.conv1.weight"]
        side = round((table["visual.positional_embedding"][0] - 1) ** 0.5)
        vocabulary, text_width = table["token_embedding.weight"]
        positions, projection = table["positional_embedding"][0], table["text_projection"][1]
        mlps = [table[f"{tower}transformer.resblocks.0.mlp.c_fc.weight"][0] for tower in ("visual.", "")]
    except (KeyError, IndexError, ValueError) as error:
        some = ", ".join(f"{name[:80]} {shape}" for name, shape in list(table.items())[:3])
        missing = f"no {str(error)[:100]}, but {some or 'nothing'}"
        raise InputError(f"{source}: not a CLIP of two transformers in OpenCLIP's layout ({missing})") from error
    if not activation and width not in _ONLY_GELU:
        raise InputError(
            f"{source}: doesn't record its activation; set activation to quick_gelu (OpenAI's weights, and names that "
            "end in -quickgelu) or gelu (all others)"
        )
    shared = {"activation": known_name("config", "activation", activation or "gelu", ACTIVATIONS)}
    counts = [_layers(table, number) for number in (1, 2)]
    heads = max(width // _HEAD_WIDTHS.get(width, _USUAL_HEAD), 1)
    vision = CLIPVisionConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        mlp_width=mlps[0],
        layers=counts[0],
        heads=heads,
        **shared,
    )
    text = CLIPTextConfig(
        vocab_size=vocabulary,
        positions=positions,
        max_length=positions,
        width=text_width,
        mlp_width=mlps[1],
        layers=counts[1],
        heads=max(text_width // _USUAL_HEAD, 1),
        **shared,
    )
    return clip_from_transformers(clip_to_transformers(CLIPConfig(text, vision, projection)), source)


def transformers_tensors(stored: Tensors, config: CLIPConfig, source: str) -> dict[str, StoredTensor]:
    """OpenCLIP's tensors by Transformers' names; those that aren't there are left out.

    Raises `InputError` for weights of the towers that the config has no place for.
    """
    found, used = {}, set(_UNUSED)
    for name, shape in names.torch_shapes(clip_parameter_shapes(config)).items():
        original, third = open_clip_name(name)
        used.add(original)
        if original not in stored:
            continue
        tensor = stored[original]
        if name in _PROJECTIONS and len(tensor.shape) == 2:
            tensor = tensor.turned()
        elif third is not None and tensor.shape == (3 * shape[0], *shape[1:]):
            tensor = tensor.rows(third * shape[0], shape[0])
        found[name] = tensor
    strange = [name for name in stored if name not in used]
    if strange:
        raise InputError(f"{source}: unexpected weights ({len(strange)}): {', '.join(n[:80] for n in strange[:5])}")
    return found


def open_clip_name(name: str) -> tuple[str, int | None]:
    """OpenCLIP's name of a weight of CLIP; for a q, k or v projection also its index in the stack, else None."""
    if name in _PROJECTIONS:
        return _PROJECTIONS[name], None
    tower, _, inner = name.partition(".")
    if tower == "vision_model" and inner in _VISION_ENDS:
        return f"visual.{_VISION_ENDS[inner]}", None
    if tower not in ("vision_model", "text_model"):
        return name, None
    original, third = text_name(f"text_model.{inner}", second=True)
    return ("visual." if tower == "vision_model" else "") + original.removeprefix(OPEN_CLIP), third


def _part(json: Mapping[str, Any], key: str, source: str) -> Mapping[str, Any]:
    if not isinstance(json.get(key), Mapping):
        raise InputError(f"{source}: {key} is {shown(json.get(key))}; expected an object")
    return json[key]


def _require_plain(tower: Mapping[str, Any], read: tuple[str, ...], source: str) -> None:
    for key, value in tower.items():
        if key in read or not value:
            continue
        if key not in _NEUTRAL or (_NEUTRAL[key] is not None and value not in _NEUTRAL[key]):
            raise InputError(f"{source}: {shown(key)} is {shown(value)}, which isn't supported; only plain CLIP is")


def _vision_config(json: Mapping[str, Any], source: str, activation: str) -> CLIPVisionConfig:
    width = whole_number(source, "width", json.get("width", 768), 1, MOST_CHANNELS)
    return CLIPVisionConfig(
        image_size=whole_number(source, "image_size", json.get("image_size", 224), 1, MOST_PIXELS),
        patch_size=whole_number(source, "patch_size", json.get("patch_size", 16), 1, MOST_CHANNELS),
        width=width,
        mlp_width=_mlp_width(json, source, width),
        layers=whole_number(source, "layers", json.get("layers", 12), 1, MOST_LAYERS),
        heads=max(width // whole_number(source, "head_width", json.get("head_width", _USUAL_HEAD)), 1),
        activation=activation,
    )


def _text_config(json: Mapping[str, Any], source: str, activation: str) -> CLIPTextConfig:
    width = whole_number(source, "width", json.get("width", 512), 1, MOST_CHANNELS)
    positions = whole_number(source, "context_length", json.get("context_length", 77), 1, MOST_POSITIONS)
    return CLIPTextConfig(
        vocab_size=whole_number(source, "vocab_size", json.get("vocab_size", 49408), 1, MOST_TOKENS),
        positions=positions,
        max_length=positions,
        width=width,
        mlp_width=_mlp_width(json, source, width),
        layers=whole_number(source, "layers", json.get("layers", 12), 1, MOST_LAYERS),
        heads=whole_number(source, "heads", json.get("heads", 8), 1, MOST_CHANNELS),
        activation=activation,
    )


def _mlp_width(json: Mapping[str, Any], source: str, width: int) -> int:
    return int(width * finite_number(source, "mlp_ratio", json.get("mlp_ratio", 4.0), 0, MOST_CHANNELS / width))


def _layers(table: Mapping[str, tuple[int, ...]], group: int) -> int:
    """The number of layers of the image tower (group 1) or the text tower (2)."""
    found = (match[group] for match in map(_LAYER.match, table) if match and match[group])
    return max((int(number[:9]) + 1 for number in found), default=0)
