"""`TinyVAEConfig` to and from the `config.json` of Diffusers' `AutoencoderTiny`."""

from collections.abc import Mapping
from typing import Any

from bksdm_jax.base.errors import InputError, finite_number, shown, whole_number
from bksdm_jax.formats.limits import MOST_BLOCKS, MOST_CHANNELS, MOST_STAGES
from bksdm_jax.models.tiny_vae import TinyVAEConfig

TINY_CLASS = "AutoencoderTiny"
_FIXED: dict[str, tuple[Any, ...]] = {
    "act_fn": ("relu",),
    "shift_factor": (None, 0),
    "upsample_fn": ("nearest",),
    "upsampling_scaling_factor": (2,),
}


def tiny_vae_from_diffusers(json: Mapping[str, Any], source: str = "config.json") -> TinyVAEConfig:
    """Reads `config.json` of Diffusers' `AutoencoderTiny`; missing keys take Diffusers' defaults.

    Raises `InputError` for unsupported values.
    """
    for key, allowed in _FIXED.items():
        if key in json and json[key] not in allowed:
            raise InputError(f"{source}: {key} is {shown(json[key])}; only {allowed[0]!r} is supported")
    default = TinyVAEConfig()
    encoder = _blocks(json, "num_encoder_blocks", default.encoder_blocks, source)
    decoder = _blocks(json, "num_decoder_blocks", default.decoder_blocks, source)
    if len(encoder) != len(decoder):
        raise InputError(
            f"{source}: num_encoder_blocks has {len(encoder)} stages, num_decoder_blocks {len(decoder)}; "
            "expected as many"
        )

    def channels(key: str, default: int) -> int:
        return whole_number(source, key, json.get(key, default), 1, MOST_CHANNELS)

    return TinyVAEConfig(
        encoder_blocks=encoder,
        decoder_blocks=decoder,
        encoder_width=_width(json, "encoder_block_out_channels", len(encoder), source),
        decoder_width=_width(json, "decoder_block_out_channels", len(decoder), source),
        in_channels=channels("in_channels", default.in_channels),
        out_channels=channels("out_channels", default.out_channels),
        latent_channels=channels("latent_channels", default.latent_channels),
        scaling_factor=finite_number(source, "scaling_factor", json.get("scaling_factor", 1.0), 1e-6, 1e6),
    )


def tiny_vae_to_diffusers(config: TinyVAEConfig) -> dict[str, Any]:
    """The `config.json` of the same network as Diffusers' `AutoencoderTiny`."""
    return {
        "_class_name": TINY_CLASS,
        "act_fn": "relu",
        "decoder_block_out_channels": [config.decoder_width] * len(config.decoder_blocks),
        "encoder_block_out_channels": [config.encoder_width] * len(config.encoder_blocks),
        "in_channels": config.in_channels,
        "latent_channels": config.latent_channels,
        "num_decoder_blocks": list(config.decoder_blocks),
        "num_encoder_blocks": list(config.encoder_blocks),
        "out_channels": config.out_channels,
        "scaling_factor": config.scaling_factor,
        "upsampling_scaling_factor": 2,
    }


def _blocks(json: Mapping[str, Any], key: str, default: tuple[int, ...], source: str) -> tuple[int, ...]:
    counts = json.get(key, default)
    if not isinstance(counts, (list, tuple)) or not 1 <= len(counts) <= MOST_STAGES:
        raise InputError(f"{source}: {key} is {shown(counts)}; expected a list of 1 to {MOST_STAGES} counts of blocks")
    for count in counts:
        whole_number(source, key, count, 0, MOST_BLOCKS)
    if sum(counts) > MOST_BLOCKS:
        raise InputError(f"{source}: {key} has {sum(counts)} blocks; expected at most {MOST_BLOCKS}")
    return tuple(counts)


def _width(json: Mapping[str, Any], key: str, stages: int, source: str) -> int:
    """The channels of every stage: Diffusers' class has no layer that would change them."""
    widths = json.get(key, (64,) * stages)
    if not isinstance(widths, (list, tuple)) or len(widths) != stages or any(width != widths[0] for width in widths):
        raise InputError(f"{source}: {key} is {shown(widths)}; expected {stages} equal channel counts")
    return whole_number(source, key, widths[0], 1, MOST_CHANNELS)
