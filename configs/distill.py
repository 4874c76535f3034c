"""Distillation runs of the BK-SDM paper (arXiv 2305.15798). Variants combine, separated by commas.

  python -m launch.train --config=configs/distill.py:v1,bk_small --config.teacher=DIR --config.data=DIR --workdir=DIR
  python -m launch.train --config=configs/distill.py:shapes,bk_small --workdir=runs/shapes_small

Teacher generation (choose one; v1 if none is named):
  v1       SD 1.x: 512 px, batch 64 x 4 = 256
  v2_base  SD 2.x base: 512 px, batch 32 x 4 = 128
  v2       SD 2.x, v-prediction: 768 px, batch 32 x 4 = 128
  shapes   the small teacher and the shapes world that come with the package: 64 px, batch 32, float32; minutes on two
           CPU cores. What follows becomes a twin: batches an eighth as large, rates ten times as high, 250, 1,000 and
           4,000 pairs
Student (bk_base if none is named): bk_base, bk_small, bk_tiny, no_mid
Batch: batch_64, batch_128, batch_256
Learning rate: lr_1e-5, lr_2.5e-5, lr_5e-5, lr_1e-4, lr_2.5e-4
Data: pairs_11k, pairs_213k, pairs_2.3m   the first 10,274, 212,776 or 2,256,472 of the data
Terms and start:
  random_init  the student starts from random weights
  no_kd        the task loss alone
  no_feature   task loss and output distillation
Other:
  runlocal     a handful of small updates, float32: seconds per update on a laptop; shows that everything works

The paper's runs, 50,000 updates each, and what it reports on COCO-30K (FID / IS / CLIP score):
  v1,bk_base                        15.76 / 33.79 / .2878    v1,bk_base,pairs_2.3m    14.81 / 34.17 / .2883
  v1,bk_small                       16.98 / 31.68 / .2677    v1,bk_small,pairs_2.3m   17.05 / 33.10 / .2734
  v1,bk_tiny                        17.12 / 30.09 / .2653    v1,bk_tiny,pairs_2.3m    17.53 / 31.32 / .2690
  v1,bk_base,batch_64               14.61 / 31.44 / .2826    v1,bk_base,batch_128     15.02 / 32.40 / .2841
  v1,bk_small,batch_64              16.87 / 29.51 / .2644    v1,bk_small,batch_128    16.83 / 30.40 / .2668
  v1,bk_tiny,batch_64               17.28 / 28.33 / .2607    v1,bk_base,no_kd         23.57 / 23.02 / .2408
  v2_base,bk_base                   15.85 / 31.70 / .2868    v2_base,bk_base,no_kd    16.76 / 25.88 / .2661
  v2_base,bk_small                  16.61 / 31.73 / .2901    v2_base,bk_tiny,no_kd    16.87 / 26.06 / .2678
  v2_base,bk_tiny                   15.68 / 31.64 / .2897    v2_base,no_mid           14.84 / 37.29 / .3093
The ablation (Table 4) on v2_base,bk_small:
  random_init,no_kd                 41.75 / 15.42 / .1733    no_kd                    16.71 / 25.77 / .2655
  random_init,no_feature            29.01 / 18.29 / .1967    no_feature               14.27 / 29.47 / .2777
  random_init                       24.47 / 22.37 / .2323    (none)                   16.61 / 31.73 / .2901
Learning rates (Table 13) on v2_base,bk_small:
  lr_1e-5   15.24 / 29.77 / .2844   lr_2.5e-5  15.69 / 31.64 / .2906   lr_5e-5    16.61 / 31.73 / .2901
  lr_1e-4   17.43 / 30.58 / .2871   lr_2.5e-4  18.93 / 28.90 / .2775
The mid block alone (Tables 10, 11): SD v1.4 has 13.05 / 36.76 (FID / IS); without it and without any training, as
`launch.prune --config.student=no_mid` writes it, 15.60 / 32.33. A training with v1,no_mid goes on from there.
v2 (768 px) isn't in the paper's tables. A run of batch 256 took about 300 hours and 53 GB on one A100 80G, one of batch
64 60 hours and 28 GB, in the authors' code. `launch.plan` says what one needs elsewhere: by the roofline sixteen v4
chips (`v4:2x2x4`) take 0.28 days for v1,bk_base and as long for v2,bk_base. The shapes' twins take a quarter of an hour
each on two CPU cores, those of smaller batches less.
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
    config.generation = "v1"  # or v2_base, v2; a teacher of another is refused; empty: any
    config.student = "bk_base"  # preset, or comma-separated names of removed blocks
    config.student_init = "teacher"  # or random, or a pipeline with that student
    config.init_revision = ""  # of that pipeline on the hub
    config.init_variant = ""  # of its weights
    config.data = ""  # image folder with metadata.csv, or folder of a TFDS set; required
    config.split = "train"  # of the TFDS set
    config.examples = 0  # train on the first so many; 0: on all
    config.resolution = 512
    config.flip = True
    config.random_crop = False  # anywhere along the long side, not in the middle
    config.workers = 0  # processes that read and decode; 0: threads
    config.caption_dropout = 0.0  # share of captions that are left empty
    config.noise_offset = 0.0  # 0.1 is usual
    config.seed = 1234
    config.steps = 50_000  # optimiser updates
    config.batch_size = 256  # images per optimiser update
    config.accumulation = 4  # micro-batches that an update is made of
    config.dtype = "bfloat16"  # or float32
    config.attention = "auto"  # of the U-Net: auto, xla, chunked, cudnn (NVIDIA), flash (TPU)
    config.remat = "none"  # what the backward pass computes anew: none, products, attention, blocks, full
    config.fsdp = 1  # devices that share one copy of the parameters
    config.log_every = 50
    config.checkpoint_every = 1000
    config.keep_checkpoints = 3
    config.format = "safetensors"  # or flax, single_file, single_file_spaced
    config.save_weights = "ema"  # or raw: those of the last update
    config.save_dtype = ""  # float32, float16, bfloat16; empty: the U-Net float32, the rest as it was
    config.safety_checker = True  # the teacher's is copied, where it has one
    config.profile_step = 0  # the first of three updates that the profiler watches
    config.topology = ""  # of launch.plan, as `plan` is: v4:2x2x4 and the like; empty: this machine's devices
    _add_groups(config)
    return config


def _add_groups(config: config_dict.ConfigDict) -> None:
    """The settings that belong together."""
    config.loss = config_dict.ConfigDict(
        {
            "task": 1.0,
            "output": 1.0,
            "feature": 1.0,
            "min_snr_gamma": 0.0,  # above 0: the task's term weighs images by noise level; 5 is usual
            "feature_source": "stages",  # or self_attention, as KOALA
            "feature_scales": (),  # ("up_blocks.3=0.5",): weights of single features or stages; others weigh 1
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
    config.validation = config_dict.ConfigDict(
        {
            "every": 1000,  # updates; 0: once at the end
            "images": 512,  # 0: no validation
            "split": "",  # of the TFDS set; empty: validation or heldout, where there is one
        }
    )
    config.plan = config_dict.ConfigDict(
        {
            "cached": True,  # the data are cached latents
            "price": 0.0,  # of one chip for an hour; 0: not known
            "largest": True,  # find the largest batch, by a second compilation
            "confirm": False,  # and compile that too
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


def _v1(config: config_dict.ConfigDict) -> None:
    config.resolution, config.batch_size = 512, 256


def _v2_base(config: config_dict.ConfigDict) -> None:
    config.resolution, config.batch_size = 512, 128
    config.generation = "v2_base"


def _v2(config: config_dict.ConfigDict) -> None:
    config.resolution, config.batch_size = 768, 128
    config.generation = "v2"


def _student(name: str) -> Callable[[config_dict.ConfigDict], None]:
    def apply(config: config_dict.ConfigDict) -> None:
        config.student = name

    return apply


def _shapes(config: config_dict.ConfigDict) -> None:
    """On the small teacher and the small world that come with the package, as `configs/ablation.py`."""
    config.teacher, config.data = "shapes_teacher", "shapes_world/demo"
    config.generation = ""
    config.resolution, config.batch_size, config.accumulation, config.flip = 64, 32, 1, False
    config.steps, config.log_every, config.checkpoint_every = 750, 30, 100
    config.optimizer.learning_rate, config.optimizer.warmup_steps = 5e-4, 50
    config.optimizer.cosine_steps = 750
    config.seed, config.dtype = 0, "float32"
    config.sheets.every, config.sheets.guidance_scale = 0, 3.0
    config.validation.images = 256


def _batch(size: int) -> Callable[[config_dict.ConfigDict], None]:
    def apply(config: config_dict.ConfigDict) -> None:
        at_once = config.batch_size // config.accumulation  # stays what it was
        config.batch_size = size // 8 if _is_twin(config) else size
        config.accumulation = max(1, config.batch_size // at_once)

    return apply


def _rate(rate: float) -> Callable[[config_dict.ConfigDict], None]:
    def apply(config: config_dict.ConfigDict) -> None:
        config.optimizer.learning_rate = 10 * rate if _is_twin(config) else rate

    return apply


def _pairs(count: int, of_twin: int) -> Callable[[config_dict.ConfigDict], None]:
    def apply(config: config_dict.ConfigDict) -> None:
        config.examples = of_twin if _is_twin(config) else count

    return apply


def _is_twin(config: config_dict.ConfigDict) -> bool:
    return config.data.startswith("shapes_world/")


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
    config.validation.every, config.validation.images = 0, 16


RATES = ("1e-5", "2.5e-5", "5e-5", "1e-4", "2.5e-4")
PAIRS = {"pairs_11k": (10_274, 250), "pairs_213k": (212_776, 1000), "pairs_2.3m": (2_256_472, 4000)}
VARIANTS = {
    "v1": _v1,
    "v2_base": _v2_base,
    "v2": _v2,
    **{name: _student(name) for name in ("bk_base", "bk_small", "bk_tiny", "no_mid")},
    "shapes": _shapes,
    **{f"batch_{size}": _batch(size) for size in (64, 128, 256)},
    **{f"lr_{rate}": _rate(float(rate)) for rate in RATES},
    **{name: _pairs(*counts) for name, counts in PAIRS.items()},
    "random_init": _random_init,
    "no_kd": _no_kd,
    "no_feature": _no_feature,
    "runlocal": _runlocal,
}
GENERATIONS = ("v1", "v2_base", "v2", "shapes")
GROUPS = (
    GENERATIONS,
    ("no_kd", "no_feature"),
    ("bk_base", "bk_small", "bk_tiny", "no_mid"),
    ("batch_64", "batch_128", "batch_256"),
    tuple(f"lr_{rate}" for rate in RATES),
    tuple(PAIRS),
)


def get_config(variants: str = "") -> config_dict.ConfigDict:
    """The config of a comma-separated list of variants: the generation first, `runlocal` last, whatever the order."""
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
    for name in sorted(names, key=lambda name: (name not in GENERATIONS, name == "runlocal")):
        VARIANTS[name](config)
    return config
