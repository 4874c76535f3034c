"""`VAEConfig` to and from the `config.json` of Diffusers' `AutoencoderKL`."""

from collections.abc import Mapping
from typing import Any

from bksdm_jax.base.errors import InputError, finite_number, shown, whole_number
from bksdm_jax.formats.limits import MOST_BLOCKS, MOST_CHANNELS, MOST_LAYERS, MOST_STAGES
from bksdm_jax.models.vae import VAEConfig

_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("silu", "swish"),
    "latents_mean": (None,),
    "latents_std": (None,),
    "mid_block_add_attention": (True,),
    "shift_factor": (None, 0),
    "use_post_quant_conv": (True,),
    "use_quant_conv": (True,),
}


def vae_from_diffusers(json: Mapping[str, Any], source: str = "config.json") -> VAEConfig:
    """Reads `config.json` of Diffusers' `AutoencoderKL` (PyTorch or Flax); missing keys take Diffusers' defaults.

    Raises `InputError` for unsupported values.
    """

    def number(key: str, default: int, most: int = MOST_CHANNELS) -> int:
        return whole_number(source, key, json.get(key, default), 1, most)

    for key, allowed in _FIXED.items():
        if key in json and json[key] not in allowed:
            raise InputError(f"{source}: {key} is {shown(json[key])}; only {allowed[0]!r} is supported")
    widths = json.get("block_out_channels", (64,))
    groups = number("norm_num_groups", 32)
    if not isinstance(widths, (list, tuple)) or not widths:
        raise InputError(f"{source}: block_out_channels is {shown(widths)}; expected a list of channel counts")
    if len(widths) > MOST_STAGES:
        raise InputError(f"{source}: block_out_channels has {len(widths)} entries; expected at most {MOST_STAGES}")
    for width in widths:
        whole_number(source, "block_out_channels", width, 1, MOST_CHANNELS)
    if any(width % groups for width in widths):
        raise InputError(
            f"{source}: block_out_channels is {shown(widths)}; expected multiples of {groups} (norm groups)"
        )
    for key, name in (("down_block_types", "DownEncoderBlock2D"), ("up_block_types", "UpDecoderBlock2D")):
        types = json.get(key, (name,))
        if not isinstance(types, (list, tuple)) or list(types) != [name] * len(widths):
            raise InputError(f"{source}: {key} is {shown(types)}; expected {len(widths)} times {name!r}")
    layers = number("layers_per_block", 1, MOST_LAYERS)
    if (blocks := (2 * layers + 1) * len(widths)) > MOST_BLOCKS:
        raise InputError(f"{source}: layers_per_block is {layers}: {blocks} ResNets; expected at most {MOST_BLOCKS}")
    return VAEConfig(
        layers_per_block=layers,
        in_channels=number("in_channels", 3),
        out_channels=number("out_channels", 3),
        widths=tuple(widths),
        latent_channels=number("latent_channels", 4),
        norm_groups=groups,
        scaling_factor=finite_number(source, "scaling_factor", json.get("scaling_factor", 0.18215), 1e-6, 1e6),
    )


def vae_to_diffusers(config: VAEConfig) -> dict[str, Any]:
    """The `config.json` of the same network as Diffusers' `AutoencoderKL`."""
    count = len(config.widths)
    return {
        "_class_name": "AutoencoderKL",
        "act_fn": "silu",
        "block_out_channels": list(config.widths),
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "layers_per_block": config.layers_per_block,
        "norm_num_groups": config.norm_groups,
        "out_channels": config.out_channels,
        "scaling_factor": config.scaling_factor,
        "up_block_types": ["UpDecoderBlock2D"] * count,
    }
