"""DreamBooth (arXiv 2208.12242): a subject from a few photographs, by full fine-tuning. Combine variants with commas.

  python -m launch.train --config=configs/dreambooth.py:v1 --config.model=DIR --config.data=PHOTOS \
      --config.caption="a photo of sks dog" --config.prior.prompt="a photo of a dog" --workdir=DIR
  python -m launch.train --config=configs/dreambooth.py:shapes --workdir=runs/shapes_heart

`model` is a pipeline, of a teacher or a student: a folder, single file or hub id. `data` is a folder of images;
`caption` the prompt of the subject, with a rare word such as `sks` for it; `prior.prompt` that of its class, of which
200 images are made first, in `class_images/` of the workdir.

Variants, at most one of a kind.
Model (default v1):
  v1       SD 1.x and its students: 512 px
  v2_base  SD 2.x base and its students: 512 px
  v2       SD 2.x, v-prediction, and its students: 768 px
  shapes   the bundled teacher learns a heart, an object that it has never seen, from five pictures: 64 px, float32; a
           few minutes on two CPU cores
What is trained (default: U-Net and text encoder, with prior preservation):
  lora       LoRAs of both: U-Net to_q, to_v rank 16 alpha 27, text encoder q_proj, v_proj rank 16 alpha 17
  unet_only  the U-Net alone
Other:
  no_prior   without prior preservation
  runlocal   six small updates in float32, with four class images: checks that everything works

The settings are the BK-SDM paper's, for the teacher and every student alike: 800 updates of one photograph and one of
200 class images at a rate of 1e-6; LoRAs at 1e-4. Its scores over 30 subjects are in `SUBJECTS`
(bksdm_jax/pruning/presets.py), and `launch.subjects` measures them. On an RTX 3090 it took 882 s and 23.0 GB with SD,
623 s and 18.7 GB with Base, 604 s and 17.2 GB with Small, 560 s and 13.1 GB with Tiny.

All settings: `python -m launch.train --config=configs/dreambooth.py --help`.
"""

from ml_collections import config_dict

from bksdm_jax.tasks.finetune.config import FinetuneConfig
from launch.defaults import defaults
from launch.variants import chosen_variants

DREAMBOOTH = {
    "steps": 800,
    "batch_size": 1,
    "optimizer.learning_rate": 1e-6,
    "random_crop": True,
    "prior.weight": 1.0,
    "prior.images": 200,
    "log_every": 10,
    "checkpoint_every": 400,
    "keep_checkpoints": 1,
    "sheets.every": 200,
}
LORA = {
    "optimizer.learning_rate": 1e-4,
    "adapter.rank": 16,
    "adapter.alpha": 27.0,
    "adapter.text_alpha": 17.0,
    "checkpoint_every": 200,
}
SHAPES = {
    "model": "shapes_teacher",
    "data": "shapes_world/hearts",
    "steps": 400,
    "batch_size": 5,
    "optimizer.learning_rate": 5e-5,
    "resolution": 64,
    "dtype": "float32",
    "random_crop": False,
    "prior.prompt": "a large red star in the centre on a white background",
    "prior.steps": 25,
    "prior.guidance_scale": 1.5,
    "sheets.guidance_scale": 3.0,
}
SHAPES_LORA = {"optimizer.learning_rate": 1e-3}
RUNLOCAL = {
    "resolution": 64,
    "steps": 6,
    "log_every": 1,
    "checkpoint_every": 3,
    "dtype": "float32",
    "prior.images": 4,
    "prior.steps": 2,
    "sheets.every": 0,
    "sheets.steps": 4,
}
VARIANTS = {
    "v1": {},
    "v2_base": {"plan.generation": "v2_base"},
    "v2": {"resolution": 768, "plan.generation": "v2"},
    "shapes": SHAPES,
    "lora": LORA,
    "unet_only": {"text_encoder": False},
    "no_prior": {"prior.weight": 0.0},
    "runlocal": RUNLOCAL,
}
MODELS = ("v1", "v2_base", "v2", "shapes")
GROUPS = (MODELS,)


def get_config(variants: str = "") -> config_dict.ConfigDict:
    """The config of a comma-separated list of variants; the model is applied first and `runlocal` last."""
    names = chosen_variants(variants, VARIANTS, GROUPS)
    config = defaults(FinetuneConfig)
    config.update_from_flattened_dict(DREAMBOOTH)
    for name in sorted(names, key=lambda name: (name not in MODELS, name == "runlocal")):
        config.update_from_flattened_dict(VARIANTS[name])
    if {"shapes", "lora"} <= set(names):
        config.update_from_flattened_dict(SHAPES_LORA)
    return config
