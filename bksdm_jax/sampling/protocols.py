"""How published evaluations make their images, by name."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from bksdm_jax.base.errors import InputError, known_name
from bksdm_jax.sampling.config import SampleConfig


@dataclasses.dataclass(frozen=True)
class Protocol:
    """An evaluation's images.

    Attributes:
        settings: keys of `SampleConfig` and their values.
        resized: pixels; each file is read again, resized to this square and saved a second time. 0: it isn't.
    """

    settings: Mapping[str, Any]
    resized: int = 0


PROTOCOLS = {
    # BK-SDM's evaluation on MS-COCO: files of 512 pixels, and from these files those of 256 pixels that are scored.
    "bk_sdm": Protocol(
        {
            "sampler": "pndm",
            "steps": 25,
            "guidance_scale": 7.5,
            "guidance_rescale": 0.0,
            "negative_prompt": "",
            "resolution": 512,
            "height": 512,
            "width": 512,
            "format": "jpeg",
            "init": "",
            "switch_at": 0,
            "deep_cache": 0,
        },
        resized=256,
    ),
    # MLPerf's Stable Diffusion: DDIM with eta 0; its images go from the decoder to the scores without a file.
    "mlperf_sd": Protocol(
        {
            "sampler": "ddim",
            "steps": 50,
            "guidance_scale": 8.0,
            "guidance_rescale": 0.0,
            "negative_prompt": "",
            "resolution": 512,
            "height": 512,
            "width": 512,
            "format": "png",
            "init": "",
            "switch_at": 0,
            "deep_cache": 0,
        }
    ),
}


def with_protocol(config: SampleConfig) -> SampleConfig:
    """The settings with those of their protocol, if they have one.

    Raises `InputError` for an unknown protocol, or a setting that is neither its own default nor the protocol's.
    """
    if not config.protocol:
        return config
    protocol = PROTOCOLS[known_name("config", "protocol", config.protocol, PROTOCOLS)]
    defaults = {field.name: field.default for field in dataclasses.fields(config)}
    for key, wanted in protocol.settings.items():
        if (found := getattr(config, key)) not in (defaults[key], wanted):
            raise InputError(
                f"{key}: {found!r} contradicts protocol {config.protocol}, which has {wanted!r}; leave one of them out"
            )
    return dataclasses.replace(config, **protocol.settings)


def resized_to(config: SampleConfig) -> int:
    """Side in pixels of the second copy of each image; 0: there is none."""
    return PROTOCOLS[config.protocol].resized if config.protocol else 0
