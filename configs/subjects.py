"""DreamBooth's evaluation: 30 subjects, each fine-tuned on, 25 prompts, 4 images of each.

  python -m launch.subjects --config=configs/subjects.py:v1,bk_base --config.dataset=dreambooth/dataset \\
    --config.subject=dog6 --config.model=DIR --workdir=runs/subjects
  python -m launch.subjects --config=configs/subjects.py:v1,bk_base --config.dataset=dreambooth/dataset \\
    --workdir=runs/subjects

Variants, which may be combined:
  v1        the paper's identifier, sks11df, and SD v1.4 for the images of prior preservation
  sd        the model is SD v1.4
  bk_base   the model is the authors' Base, where --config.model doesn't name another
  bk_small  their Small
  bk_tiny   their Tiny
  lora      trains LoRAs, as the authors' scripts do, instead of all weights; the paper has no scores of it
  runlocal  a few small updates and images, to check that everything works

The defaults are the paper's: 800 updates of all weights of U-Net and text encoder at learning rate 1e-6 with one
photograph and one of 200 class images each; DPM-Solver++, 25 steps, guidance 7.5, 512 pixels. Its scores (DINO, CLIP-I,
CLIP-T) are in `SUBJECTS` (bksdm_jax/pruning/presets.py).

All settings: `python -m launch.subjects --help`.
"""

from typing import Any

from ml_collections import config_dict

from bksdm_jax.experiments.subjects_config import PUBLISHED, SubjectsConfig
from launch.defaults import defaults
from launch.variants import chosen_variants

MODELS = {
    "sd": "CompVis/stable-diffusion-v1-4",
    "bk_base": "nota-ai/bk-sdm-base",
    "bk_small": "nota-ai/bk-sdm-small",
    "bk_tiny": "nota-ai/bk-sdm-tiny",
}
VARIANTS: dict[str, dict[str, Any]] = {
    "v1": PUBLISHED,
    **{name: {"model": model} for name, model in MODELS.items()},
    "lora": {
        "optimizer.learning_rate": 1e-4,
        "adapter.rank": 16,
        "adapter.alpha": 27.0,
        "adapter.text_rank": 16,
        "adapter.text_alpha": 17.0,
    },
    "runlocal": {
        "resolution": 64,
        "steps": 4,
        "dtype": "float32",
        "prior.images": 4,
        "prior.steps": 2,
        "sampling.steps": 2,
        "sampling.images_per_prompt": 1,
    },
}


def get_config(variants: str = "") -> config_dict.ConfigDict:
    """The settings of a comma-separated list of variants."""
    names = chosen_variants(variants, VARIANTS, [MODELS])
    config = defaults(SubjectsConfig)
    for name in names:
        config.update_from_flattened_dict(VARIANTS[name])
    return config
