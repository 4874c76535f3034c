"""Distillation runs of the BK-SDM paper (arXiv 2305.15798). Variants combine, separated by commas.

  python -m launch.train --config=configs/distill.py:v1,bk_small --config.teacher=DIR --config.data=DIR --workdir=DIR
  python -m launch.train --config=configs/distill.py:shapes,bk_small --workdir=runs/shapes_small

Teacher generation (choose one; v1 if none is named):
  v1       SD 1.x: 512 px, batch 64 x 4 = 256
  v2_base  SD 2.x base: 512 px, batch 32 x 4 = 128
  v2       SD 2.x, v-prediction: 768 px, batch 32 x 4 = 128
  shapes   the small teacher and the shapes world that come with the package: 64 px, batch 32, float32, minutes on a CPU
Student (bk_base if none is named): bk_base, bk_small, bk_tiny, no_mid
Other:
  random_init  the student starts from random weights
  no_kd        the task loss alone
  no_feature   task loss and output distillation
  runlocal     a handful of small updates, float32: seconds per update on a laptop; shows that everything works

The reference run (v1, 50,000 updates) took about 300 hours and 53 GB on one A100 80G. Published scores on COCO-30K
(FID / IS / CLIP): v1 Base 15.76/33.79/.2878, Small 16.98/31.68/.2677, Tiny 17.12/30.09/.2653; v2 Base
15.85/31.70/.2868, Small 16.61/31.73/.2901, Tiny 15.68/31.64/.2897.
"""

import difflib
from collections.abc import Callable

from ml_collections import config_dict


def _base() -> config_dict.ConfigDict:
    """The reference run of SD v1 (section 4 of the paper)."""
    config = config_dict.ConfigDict()
    config.teacher = ""  # pipeline folder, single file, or id on the hub; required
    config.revision = ""  # branch, tag or commit on the hub
    config.variant = ""  # of the weights: fp16, non_ema, ...
    config.tokenizer = ""  # of a single file: folder or id on the hub; empty: CLIP's, from the hub
    config.prediction = ""  # of a single file of SD 2.x: epsilon or v_prediction
    config.student = "bk_base"  # preset, or comma-separated names of removed blocks
    config.student_init = "teacher"  # or random, or a pipeline with that student
    config.init_revision = ""  # of that pipeline on the hub
    config.init_variant = ""  # of its weights
    config.data = ""  # image folder with metadata.csv, or folder of a TFDS set; required
    config.split = "train"  # of the TFDS set
    config.resolution = 512
    config.flip = True
    config.random_crop = False  # anywhere along the long side, not in the middle
    config.workers = 0  # processes that read and decode; 0: threads
    config.seed = 1234
    config.steps = 50_000  # optimiser updates
    config.batch_size = 256  # images per optimiser update
    config.accumulation = 4  # micro-batches that an update is made of
    config.dtype = "bfloat16"  # or float32
    config.attention = "auto"  # of the U-Net: auto, xla, chunked, cudnn (NVIDIA), flash (TPU)
    config.fsdp = 1  # devices that share one copy of the parameters
    config.log_every = 50
    config.checkpoint_every = 1000
    config.keep_checkpoints = 3
    config.format = "safetensors"  # or flax, single_file, single_file_spaced
    config.save_dtype = ""  # float32, float16, bfloat16; empty: the U-Net float32, the rest as it was
    config.safety_checker = True  # the teacher's is copied, where it has one
    config.loss = config_dict.ConfigDict(
        {
            "task": 1.0,
            "output": 1.0,
            "feature": 1.0,
            "min_snr_gamma": 0.0,  # above 0: the task's term weighs images by noise level; 5 is usual
        }
    )
    config.optimizer = config_dict.ConfigDict(
        {
            "learning_rate": 5e-5,
            "beta1": 0.9,
            "beta2": 0.999,
            "weight_decay": 1e-2,
            "epsilon": 1e-8,
            "clip_norm": 1.0,
            "ema_decay": 0.9999,
            "warmup_steps": 0,
            "cosine_steps": 0,  # the update at which the rate has fallen to zero; 0: constant
        }
    )
    config.sheets = config_dict.ConfigDict(
        {
            "every": 1000,
            "prompts": (),  # none: the first captions of the data
            "steps": 25,  # 0: no sheets
            "guidance_scale": 7.5,
        }
    )
    return config


def _v1(config: config_dict.ConfigDict) -> None:
    config.resolution, config.batch_size = 512, 256


def _v2_base(config: config_dict.ConfigDict) -> None:
    config.resolution, config.batch_size = 512, 128


def _v2(config: config_dict.ConfigDict) -> None:
    config.resolution, config.batch_size = 768, 128


def _student(name: str) -> Callable[[config_dict.ConfigDict], None]:
    def apply(config: config_dict.ConfigDict) -> None:
        config.student = name

    return apply


def _shapes(config: config_dict.ConfigDict) -> None:
    """On the small teacher and the small world that come with the package, as `configs/ablation.py`."""
    config.teacher, config.data = "shapes_teacher", "shapes_world/demo"
    config.resolution, config.batch_size, config.accumulation, config.flip = 64, 32, 1, False
    config.steps, config.log_every, config.checkpoint_every = 750, 30, 100
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 5e-4, 50
    config.optimizer.cosine_steps = 750
    config.seed, config.dtype = 0, "float32"
    config.sheets.every, config.sheets.guidance_scale = 0, 3.0


def _random_init(config: config_dict.ConfigDict) -> None:
    config.student_init = "random"


def _no_feature(config: config_dict.ConfigDict) -> None:
    config.loss.feature = 0.0


def _no_kd(config: config_dict.ConfigDict) -> None:
    config.loss.output = config.loss.feature = 0.0


def _runlocal(config: config_dict.ConfigDict) -> None:
    config.resolution, config.batch_size, config.accumulation = 64, 8, 1
    config.steps, config.log_every, config.checkpoint_every = 6, 1, 3
    config.dtype = "float32"
    config.sheets.every, config.sheets.steps = 0, 4


VARIANTS = {
    "v1": _v1,
    "v2_base": _v2_base,
    "v2": _v2,
    **{name: _student(name) for name in ("bk_base", "bk_small", "bk_tiny", "no_mid")},
    "shapes": _shapes,
    "random_init": _random_init,
    "no_kd": _no_kd,
    "no_feature": _no_feature,
    "runlocal": _runlocal,
}
GROUPS = (("v1", "v2_base", "v2", "shapes"), ("no_kd", "no_feature"), ("bk_base", "bk_small", "bk_tiny", "no_mid"))


def get_config(variants: str = "") -> config_dict.ConfigDict:
    """The config of a comma-separated list of variants; `runlocal` is applied last, whatever the order."""
    names = [name.strip() for name in variants.split(",") if name.strip()]
    for name in names:
        if name not in VARIANTS:
            close = difflib.get_close_matches(name, VARIANTS, n=1)
            hint = f" (did you mean {close[0]!r}?)" if close else ""
            raise ValueError(f"unknown variant {name!r}{hint}; known: {', '.join(VARIANTS)}")
    for group in GROUPS:
        chosen = [name for name in group if name in names]
        if len(chosen) > 1:
            raise ValueError(f"variants {' and '.join(chosen)} exclude each other")
    config = _base()
    for name in sorted(names, key=lambda name: name == "runlocal"):
        VARIANTS[name](config)
    return config
