r"""Where each word of a prompt looks, of a teacher and its students.

  python -m launch.attribute --config=configs/attribute.py --config.teacher=DIR --config.models="('DIR',)" \
    --config.prompts=FILE --workdir=DIR
  python -m launch.attribute --config=configs/attribute.py:shapes --config.models="('DIR',)" --workdir=DIR

Without a variant: the first 16 prompts of the file, 25 steps at guidance 7.5.

Variants:
  shapes  the shapes teacher, with four of the shapes world's captions; a minute on two CPU cores

All settings: `python -m launch.attribute --help`.
"""

from typing import Any

from ml_collections import config_dict

from bksdm_jax.analysis.attribution_config import AttributionConfig
from launch.defaults import defaults
from launch.variants import chosen_variants

VARIANTS: dict[str, dict[str, Any]] = {
    "shapes": {
        "teacher": "shapes_teacher",
        "texts": (
            "a large blue star at the top left on a white background",
            "a large purple circle at the top left and a large red triangle at the bottom left on a black background",
            "a small purple star at the top right and a small red star at the bottom left on a grey background",
            "a large yellow star at the bottom right and a small cyan triangle at the top right on a grey background",
        ),
        "steps": 12,
        "guidance_scale": 1.5,
    },
}


def get_config(variants: str = "") -> config_dict.ConfigDict:
    """The settings of a comma-separated list of variants."""
    config = defaults(AttributionConfig)
    for name in chosen_variants(variants, VARIANTS):
        config.update(VARIANTS[name])
    return config
