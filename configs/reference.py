"""Real images, their statistics, and prompts, from COCO's files.

  python -m launch.reference --config=configs/reference.py:bk_sdm --config.images=val2014 \\
      --config.captions=captions_val2014.json --config.inception=FILE --workdir=DIR
  python -m launch.reference --config=configs/reference.py:mlperf_sd --config.images=val2014 \\
      --config.captions=captions_val2014.json --config.prompts=val2014_30k.tsv --config.inception=FILE --workdir=DIR

Variants:
  bk_sdm     30,000 prompts; all images at 256 pixels
  mlperf_sd  30,000 prompts, for comparable scores MLPerf's own list; only their images, at 512 pixels

All settings: `python -m launch.reference --help`.
"""

from ml_collections import config_dict

from bksdm_jax.evaluation.config import SCORING, ReferenceConfig
from launch.defaults import defaults
from launch.variants import chosen_variants

VARIANTS = {
    name: {"protocol": name, "count": SCORING[name].images, "size": SCORING[name].size}
    for name in ("bk_sdm", "mlperf_sd")
}
VARIANTS["mlperf_sd"]["of_prompts"] = True


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """The settings of a variant."""
    chosen = chosen_variants(variant, VARIANTS, [VARIANTS])
    config = defaults(ReferenceConfig)
    for name in chosen:
        config.update(VARIANTS[name])
    return config
