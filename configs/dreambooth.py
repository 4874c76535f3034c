"""DreamBooth (arXiv 2208.12242): a subject from a few photographs, by full fine-tuning. Combine variants with commas.

  python -m launch.train --config=configs/dreambooth.py:v1 --config.model=DIR --config.data=PHOTOS \
      --config.caption="a photo of sks dog" --config.prior.prompt="a photo of a dog" --workdir=DIR
  python -m launch.train --config=configs/dreambooth.py:shapes --workdir=runs/shapes_heart

`model` is a pipeline, of a teacher or a student: a folder, single file or hub id. `data` is a folder of images;
`caption` the prompt of the subject, with a rare word such as `sks` for it; `prior.prompt` that of its class, of which
200 images are made first, in `class_images/` of the workdir.

Variants, at most one of a kind.
Model (default v1):
  v1       SD 1.x or SD 2.x base, and their students: 512 px
  v2       SD 2.x, v-prediction: 768 px
  shapes   the bundled teacher learns a heart, an object that it has never seen, from five pictures: 64 px, float32; a
           few minutes on two CPU cores
What is trained (default: U-Net and text encoder, with prior preservation):
  lora       LoRAs of both: U-Net to_q, to_v rank 16 alpha 27, text encoder q_proj, v_proj rank 16 alpha 17; without
             prior preservation
  unet_only  the U-Net alone
Other:
  no_prior   without prior preservation
  runlocal   six small updates in float32, with four class images: checks that everything works

The paper (section 4.4; Table 4) trains 800 updates of one image, with 200 class images, at a rate of 1e-6, and LoRAs
at 1e-4. Its results over 30 subjects, DINO / CLIP-I / CLIP-T, seconds and GB on an RTX 3090: SD .728 / .725 / .263, 882
and 23.0; Base .723 / .717 / .260, 623 and 18.7; Small .720 / .705 / .259, 604 and 17.2; Tiny .715 / .693 / .261, 560
and 13.1. They are the same settings for every model.

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
    "optimizer.ema_decay": 0.0,
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
    "prior.weight": 0.0,
    "checkpoint_every": 200,
}
SHAPES = {
    "model": "shapes_teacher",
    "data": "shapes_world/hearts",
    "resolution": 64,
    "dtype": "float32",
    "random_crop": False,
    "sheets.guidance_scale": 3.0,
}
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
    "v2": {"resolution": 768, "plan.generation": "v2"},
    "shapes": SHAPES,
    "lora": LORA,
    "unet_only": {"text_encoder": False},
    "no_prior": {"prior.weight": 0.0},
    "runlocal": RUNLOCAL,
}
MODELS = ("v1", "v2", "shapes")
GROUPS = (MODELS,)


def get_config(variants: str = "") -> config_dict.ConfigDict:
    """The config of a comma-separated list of variants; the model is applied first and `runlocal` last."""
    names = chosen_variants(variants, VARIANTS, GROUPS)
    config = defaults(FinetuneConfig)
    config.update_from_flattened_dict(DREAMBOOTH)
    for name in sorted(names, key=lambda name: (name not in MODELS, name == "runlocal")):
        config.update_from_flattened_dict(VARIANTS[name])
    return config
