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

The paper's runs take 50,000 updates; what it reports of them on COCO-30K (FID, IS, CLIP score) is `PUBLISHED` in
bksdm_jax/pruning/presets.py, by variants: the three students with and without KD (Table 3), the ablation (Table 4)
and the learning rates (Table 13) on v2_base,bk_small, batches (Tables 7, 12), volumes of data, and the mid stage
(Tables 10, 11). There `UNTRAINED` has SD
itself and v1 without its mid stage, as `launch.prune --config.student=no_mid` writes it: a training with v1,no_mid goes
on from there. v2 (768 px) isn't in the paper's tables.

A run of batch 256 took about 300 hours and 53 GB on one A100 80G, one of batch 64 60 hours and 28 GB, in the authors'
code. `launch.plan` says what one needs elsewhere: by the roofline sixteen v4 chips (`v4:2x2x4`) take 0.28 days for
v1,bk_base and as long for v2,bk_base. The shapes' twins take a quarter of an hour each on two CPU cores, those of
smaller batches less.

Every setting is explained in `DistillConfig` (bksdm_jax/tasks/distill/config.py), those of its groups in `LossWeights`
(losses.py beside it), `OptimizerConfig` (bksdm_jax/training/state.py), `SampleGridConfig`
(sample_grids.py beside that), `ValidationConfig` and `PlanConfig`. Choices and usual values of some:
  dtype                float32, bfloat16
  attention            auto, xla, chunked, cudnn (NVIDIA), flash (TPU)
  remat                none, products, attention, blocks, full: what the backward pass recomputes
  format               safetensors, flax, single_file, single_file_spaced
  noise_offset         0.1 is usual
  loss.min_snr_gamma   5 is usual
  loss.feature_scales  "('up_blocks.3=0.5',)": weights of single features or stages; others weigh 1
  loss.feature_source  stages, self_attention (as KOALA)
"""

import difflib
from collections.abc import Callable
from typing import Any

from ml_collections import config_dict

from bksdm_jax.pruning.presets import PRESETS
from bksdm_jax.tasks.distill.config import DistillConfig
from launch.defaults import defaults

Variant = Callable[[config_dict.ConfigDict], None]


def _base() -> config_dict.ConfigDict:
    """The reference run of SD v1 (section 4 of the paper)."""
    config = defaults(DistillConfig)
    config.generation, config.student = "v1", "bk_base"
    return config


def _sets(settings: dict[str, Any]) -> Variant:
    return lambda config: config.update_from_flattened_dict(settings)


def _batch(size: int) -> Variant:
    def apply(config: config_dict.ConfigDict) -> None:
        at_once = config.batch_size // config.accumulation  # stays what it was
        config.batch_size = size // 8 if _is_twin(config) else size
        config.accumulation = max(1, config.batch_size // at_once)

    return apply


def _rate(rate: float) -> Variant:
    def apply(config: config_dict.ConfigDict) -> None:
        config.optimizer.learning_rate = 10 * rate if _is_twin(config) else rate

    return apply


def _pairs(count: int, of_twin: int) -> Variant:
    def apply(config: config_dict.ConfigDict) -> None:
        config.examples = of_twin if _is_twin(config) else count

    return apply


def _is_twin(config: config_dict.ConfigDict) -> bool:
    return config.data.startswith("shapes_world/")


SHAPES = {  # the small teacher and the small world that come with the package, as in configs/ablation.py
    "teacher": "shapes_teacher",
    "data": "shapes_world/demo",
    "generation": "",
    "resolution": 64,
    "batch_size": 32,
    "accumulation": 1,
    "flip": False,
    "steps": 750,
    "log_every": 30,
    "checkpoint_every": 100,
    "optimizer.learning_rate": 5e-4,
    "optimizer.warmup_steps": 50,
    "optimizer.cosine_steps": 750,
    "seed": 0,
    "dtype": "float32",
    "sheets.every": 0,
    "sheets.guidance_scale": 3.0,
    "validation.images": 256,
}
RUNLOCAL = {
    "resolution": 64,
    "batch_size": 8,
    "accumulation": 1,
    "steps": 6,
    "log_every": 1,
    "checkpoint_every": 3,
    "dtype": "float32",
    "sheets.every": 0,
    "sheets.steps": 4,
    "validation.every": 0,
    "validation.images": 16,
}
STUDENTS = tuple(name for name, preset in PRESETS.items() if preset.removed)
BATCHES = (64, 128, 256)
RATES = ("1e-5", "2.5e-5", "5e-5", "1e-4", "2.5e-4")
PAIRS = {"pairs_11k": (10_274, 250), "pairs_213k": (212_776, 1000), "pairs_2.3m": (2_256_472, 4000)}
VARIANTS: dict[str, Variant] = {
    "v1": _sets({}),
    "v2_base": _sets({"generation": "v2_base", "batch_size": 128}),
    "v2": _sets({"generation": "v2", "batch_size": 128, "resolution": 768}),
    **{name: _sets({"student": name}) for name in STUDENTS},
    "shapes": _sets(SHAPES),
    **{f"batch_{size}": _batch(size) for size in BATCHES},
    **{f"lr_{rate}": _rate(float(rate)) for rate in RATES},
    **{name: _pairs(*counts) for name, counts in PAIRS.items()},
    "random_init": _sets({"student_init": "random"}),
    "no_kd": _sets({"loss.output": 0.0, "loss.feature": 0.0}),
    "no_feature": _sets({"loss.feature": 0.0}),
    "runlocal": _sets(RUNLOCAL),
}
GENERATIONS = ("v1", "v2_base", "v2", "shapes")
GROUPS = (
    GENERATIONS,
    ("no_kd", "no_feature"),
    STUDENTS,
    tuple(f"batch_{size}" for size in BATCHES),
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
