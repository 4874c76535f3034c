"""LoRAs on images with captions, of a teacher or a student. Combine variants with commas.

  python -m launch.train --config=configs/lora.py:v1 --config.model=DIR --config.data=DIR --workdir=DIR
  python -m launch.train --config=configs/lora.py:shapes --workdir=runs/heart_lora

`model` is a pipeline: a folder, single file or hub id. `data` is images with captions in any form that `launch.prepare`
reads, or cached latents of it; `caption` is that of images without one. The result is `lora.safetensors` in the
workdir, in the layout of kohya's scripts, or with `--config.adapter.layout=diffusers` in that of Diffusers.

Variants, at most one of a kind.
Model (default v1):
  v1       SD 1.x and its students: 512 px
  v2_base  SD 2.x base and its students: 512 px
  v2       SD 2.x, v-prediction, and its students: 768 px
  shapes   the bundled teacher learns hearts from five pictures: 64 px, float32; a few minutes on two CPU cores
Rank (default: the BK-SDM authors' 16, alpha 27; text encoder 16, alpha 17): rank_4, rank_8, rank_32, rank_64: alpha is
  the rank
Other:
  attention  all matrices of the attention layers: to_q, to_k, to_v, to_out.0, of the text encoder q_proj, k_proj,
             v_proj, out_proj
  unet_only  the U-Net alone
  runlocal   six small updates in float32: checks that everything works

The rate is 1e-4, as the paper's; 1,000 updates of 4 images suit some dozens of images.

All settings: `python -m launch.train --config=configs/lora.py --help`.
"""

from ml_collections import config_dict

from bksdm_jax.tasks.finetune.config import FinetuneConfig
from launch.defaults import defaults
from launch.variants import chosen_variants

LORA = {
    "steps": 1000,
    "batch_size": 4,
    "optimizer.learning_rate": 1e-4,
    "flip": True,
    "adapter.rank": 16,
    "adapter.alpha": 27.0,
    "adapter.text_alpha": 17.0,
    "log_every": 10,
    "checkpoint_every": 200,
    "sheets.every": 200,
}
SHAPES = {
    "model": "shapes_teacher",
    "data": "shapes_world/hearts",
    "steps": 800,
    "batch_size": 5,
    "optimizer.learning_rate": 1e-3,
    "resolution": 64,
    "dtype": "float32",
    "flip": False,
    "sheets.every": 400,
    "sheets.guidance_scale": 3.0,
}
ATTENTION = {
    "adapter.modules": ("to_q", "to_k", "to_v", "to_out.0"),
    "adapter.text_modules": ("q_proj", "k_proj", "v_proj", "out_proj"),
}
RUNLOCAL = {
    "resolution": 64,
    "steps": 6,
    "batch_size": 2,
    "log_every": 1,
    "checkpoint_every": 3,
    "dtype": "float32",
    "sheets.every": 0,
    "sheets.steps": 4,
}
RANKS = (4, 8, 32, 64)
VARIANTS = {
    "v1": {},
    "v2_base": {"plan.generation": "v2_base"},
    "v2": {"resolution": 768, "plan.generation": "v2"},
    "shapes": SHAPES,
    **{f"rank_{rank}": {"adapter.rank": rank, "adapter.alpha": 0.0, "adapter.text_alpha": 0.0} for rank in RANKS},
    "attention": ATTENTION,
    "unet_only": {"text_encoder": False},
    "runlocal": RUNLOCAL,
}
MODELS = ("v1", "v2_base", "v2", "shapes")
GROUPS = (MODELS, tuple(f"rank_{rank}" for rank in RANKS))


def get_config(variants: str = "") -> config_dict.ConfigDict:
    """The config of a comma-separated list of variants; the model is applied first and `runlocal` last."""
    names = chosen_variants(variants, VARIANTS, GROUPS)
    config = defaults(FinetuneConfig)
    config.update_from_flattened_dict(LORA)
    for name in sorted(names, key=lambda name: (name not in MODELS, name == "runlocal")):
        config.update_from_flattened_dict(VARIANTS[name])
    return config
