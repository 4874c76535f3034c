"""What Diffusers' loaders and StableDiffusionPipeline correct in old configs of U-Nets, with a log line each.

`scheduler_json` has the corrections of schedulers.
"""

import re
from collections.abc import Mapping
from typing import Any

from absl import logging

_SAMPLE_SIZE = 64
_OLD_PREFIX = "UNetRes"  # of block types


def corrected_unet(json: Mapping[str, Any], source: str) -> dict[str, Any]:
    """The `config.json` of a U-Net as the pipeline takes it; `source` is for the log."""
    corrected = dict(json)
    size = json.get("sample_size")
    if _is_before_0_9(json.get("_diffusers_version")) and type(size) is int and 0 < size < _SAMPLE_SIZE:
        logging.info(
            "%s: sample_size is %d in a config from before Diffusers 0.9; taken as %d, as by Diffusers' pipeline",
            *(source, size, _SAMPLE_SIZE),
        )
        corrected["sample_size"] = _SAMPLE_SIZE
    for key in ("down_block_types", "up_block_types"):
        types = json.get(key)
        if isinstance(types, list) and any(str(name).startswith(_OLD_PREFIX) for name in types):
            logging.info("%s: %s has names with %s, which is left out, as by Diffusers", source, key, _OLD_PREFIX)
            corrected[key] = [name.removeprefix(_OLD_PREFIX) if isinstance(name, str) else name for name in types]
    return corrected


def _is_before_0_9(version: Any) -> bool:
    match = re.match(r"0\.(\d{1,9})(?!\d)", version) if isinstance(version, str) else None
    return match is not None and int(match[1]) < 9
