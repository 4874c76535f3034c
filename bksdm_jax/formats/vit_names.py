"""Names of weights of DINO and DINOv2, in Transformers' files and in the authors' own, and what the latter tell."""

import re
from collections.abc import Mapping

from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.stored import StoredTensor
from bksdm_jax.models.vit import ViTConfig

_RENAMED = tuple(
    (re.compile(pattern), new)
    for pattern, new in (
        (r"^(?:vit|dinov2|dinov2_with_registers|module|backbone|teacher)\.", ""),
        (r"^embeddings\.", ""),
        (r"^patch_embeddings\.projection\.|^patch_embed\.proj\.", "patch_embeddings."),
        (r"^pos_embed$", "position_embeddings"),
        (r"^norm\.", "layernorm."),
        (r"^(?:encoder\.layer|blocks)\.", "layers."),
        (r"\.(?:layernorm_before|norm1)\.", ".layer_norm1."),
        (r"\.(?:layernorm_after|norm2)\.", ".layer_norm2."),
        (r"\.attention\.(?:attention\.)?(?:query|q_proj)\.", ".self_attn.q_proj."),
        (r"\.attention\.(?:attention\.)?(?:key|k_proj)\.", ".self_attn.k_proj."),
        (r"\.attention\.(?:attention\.)?(?:value|v_proj)\.", ".self_attn.v_proj."),
        (r"\.attention\.(?:output\.dense|o_proj)\.|\.attn\.proj\.", ".self_attn.out_proj."),
        (r"\.intermediate\.dense\.", ".mlp.fc1."),
        (r"^(layers\.\d+)\.output\.dense\.", r"\1.mlp.fc2."),
        (r"\.ls([12])\.gamma$", r".layer_scale\1.lambda1"),
    )
)
"""Patterns in names, replaced in this order."""
_UNUSED = re.compile(r"mask_token$|pooler\.|head\.|classifier\.|decoder\.")
_STACKED = ("q_proj", "k_proj", "v_proj")
_HEAD = 64
Tensors = Mapping[str, StoredTensor]


def own_names(stored: Tensors, source: str) -> dict[str, StoredTensor]:
    """Tensors by the names that `vit_parameter_shapes` has, without those that the class token doesn't need.

    The authors' files stack q, k and v. Raises `InputError` if two have one name.
    """
    found: dict[str, StoredTensor] = {}
    for name, tensor in stored.items():
        new = name
        for pattern, replacement in _RENAMED:
            new = pattern.sub(replacement, new)
        if _UNUSED.match(new):
            continue
        stem, stacked, leaf = new.partition(".attn.qkv.")
        parts = {new: tensor}
        if stacked and tensor.shape and tensor.shape[0] % 3 == 0:
            third = tensor.shape[0] // 3
            parts = {f"{stem}.self_attn.{p}.{leaf}": tensor.rows(i * third, third) for i, p in enumerate(_STACKED)}
        for one, part in parts.items():
            if one in found:
                raise InputError(f"{source}: {name[:80]!r} is in it under two names; keep one of them")
            found[one] = part
    return found


def infer_vit(table: Mapping[str, tuple[int, ...]], source: str) -> ViTConfig:
    """The architecture of a file of the authors' own, by `own_names`; heads have 64 channels.

    Raises `InputError` if it isn't DINO's or DINOv2's.
    """
    try:
        width, _, patch, _ = table["patch_embeddings.weight"]
        side = round((table["position_embeddings"][1] - 1) ** 0.5)
        mlp = table["layers.0.mlp.fc1.weight"][0]
    except (KeyError, IndexError, ValueError) as error:
        some = ", ".join(f"{name[:80]} {shape}" for name, shape in list(table.items())[:3])
        raise InputError(f"{source}: not DINO or DINOv2 (no {str(error)[:100]}, but {some or 'nothing'})") from error
    matches = (re.match(r"layers\.(\d{1,9})\.", name) for name in table)
    scaled, registers = "layers.0.layer_scale1.lambda1" in table, table.get("register_tokens", (1, 0, width))[1]
    return ViTConfig(
        image_size=side * patch,
        patch_size=patch,
        width=width,
        mlp_width=mlp,
        layers=max(int(match[1]) for match in matches if match) + 1,
        heads=max(width // _HEAD, 1),
        registers=registers,
        layer_scale=scaled,
        antialias=registers > 0,
        offset=0.1 if scaled and not registers else 0.0,
    )
