"""Converts a teacher's LoRA for a student; takes seconds on a CPU.

  python -m launch.convert_lora --config=configs/convert_lora.py --config.lora=FILE --config.model=DIR --workdir=DIR

Expect a file for the student, and a table of the blocks: `bk_small` keeps about half of a LoRA's modules.

All settings: `python -m launch.convert_lora --help`.
"""

from ml_collections import config_dict

from bksdm_jax.pruning.lora_config import ConvertLoraConfig
from launch.defaults import defaults


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.convert_lora`."""
    return defaults(ConvertLoraConfig)
