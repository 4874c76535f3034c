"""Scores of a folder of images.

  python -m launch.score --config=configs/score.py:shapes --config.images=DIR --workdir=DIR
  python -m launch.score --config=configs/score.py:bk_sdm --config.images=DIR --config.reference=DIR \
    --config.inception=pt_inception-2015-12-05-6726825d.pth --workdir=DIR

Variants:
  bk_sdm     FID (pytorch-fid), Inception score, CLIP score with ViT-g/14: the paper's
  mlperf_sd  FID (pytorch-fid), CLIP score with ViT-H/14: MLPerf's
  modern     CMMD, and Frechet distance, precision, recall, density and coverage on DINOv2's features
  subjects   DINO, CLIP-I, CLIP-T of DreamBooth; images and reference need subjects
  shapes     attribute accuracy, CLIP score and Frechet distance of the shapes world; seconds on a CPU

Without a variant, name metrics: --config.metrics="('fid_clean','kid_clean')".

All settings: `python -m launch.score --help`.
"""

from ml_collections import config_dict

from bksdm_jax.evaluation.config import SCORING, ScoreConfig
from launch.defaults import defaults
from launch.variants import chosen_variants

VARIANTS = {
    "bk_sdm": {"metrics": SCORING["bk_sdm"].metrics, "protocol": "bk_sdm"},
    "mlperf_sd": {
        "metrics": SCORING["mlperf_sd"].metrics,
        "protocol": "mlperf_sd",
        "clip": SCORING["mlperf_sd"].clip_weights,
    },
    "modern": {"metrics": ("cmmd", "fd_dinov2", "manifolds_dinov2")},
    "subjects": {"metrics": ("dino", "clip_i", "clip_t")},
    "shapes": {"metrics": ("attribute_accuracy", "clip_score_shapes", "fd_clip_shapes"), "reference": "shapes"},
}


def get_config(variant: str = "") -> config_dict.ConfigDict:
    """The settings of a variant."""
    chosen = chosen_variants(variant, VARIANTS, [VARIANTS])
    config = defaults(ScoreConfig)
    for name in chosen:
        config.update(VARIANTS[name])
    return config
