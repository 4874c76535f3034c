"""Distillation runs of the BK-SDM paper (arXiv 2305.15798). Combine variants with commas.

  python -m launch.train --config=configs/distill.py:v1,bk_small --config.teacher=DIR --config.data=DIR --workdir=DIR
  python -m launch.train --config=configs/distill.py:shapes,bk_small --workdir=runs/shapes_small

Variants, at most one of a kind.
Teacher generation (default v1):
  v1       SD 1.x: 512 px, batch 64 x 4 = 256
  v2_base  SD 2.x base: 512 px, batch 32 x 4 = 128
  v2       SD 2.x, v-prediction: 768 px, batch 32 x 4 = 128
  shapes   the bundled teacher and shapes world: 64 px, batch 32, float32; minutes on two CPU cores. The variants below
           are scaled down: batches to an eighth, data to 250, 1,000 and 4,000 pairs; learning rates are ten times as
           high
Student (default bk_base): bk_base, bk_small, bk_tiny, no_mid
Batch: batch_64, batch_128, batch_256
Learning rate: lr_1e-5, lr_2.5e-5, lr_5e-5, lr_1e-4, lr_2.5e-4
Data: pairs_11k, pairs_213k, pairs_2.3m   the first 10,274, 212,776 or 2,256,472 pairs
Loss and initialisation:
  random_init  the student starts from random weights
  no_kd        task loss only
  no_feature   task loss and output distillation
Other:
  scored       images are scored before the first update and after the last: CLIP score, of shapes attribute accuracy
  runlocal     six small steps in float32: seconds per step on a laptop; checks that everything works

The paper trains for 50,000 steps. Its scores on COCO-30K (FID, IS, CLIP score) are in `PUBLISHED`
(bksdm_jax/pruning/presets.py) by variant: the three students with and without KD (Table 3), the ablation (Table 4) and
learning rates (Table 13) of v2_base,bk_small, batch sizes (Tables 7, 12), amounts of data, and the mid stage (Tables
10, 11). `UNTRAINED` has the scores of SD itself and of v1 without its mid stage, from which v1,no_mid starts. The paper
has no results for v2 (768 px).

In the authors' code a run took about 300 hours and 53 GB on one A100 80G at batch size 256, and 60 hours and 28 GB at
64. `launch.plan` estimates other hardware: sixteen v4 chips (`v4:2x2x4`) take 0.28 days for v1,bk_base, and as long for
v2,bk_base. With `shapes` a run takes 15 minutes on two CPU cores, less with smaller batches.

All settings: `python -m launch.train --help`.
"""

from collections.abc import Callable
from typing import Any

from ml_collections import config_dict

from bksdm_jax.pruning.presets import PRESETS
from bksdm_jax.tasks.distill.config import DistillConfig
from launch.defaults import defaults
from launch.variants import chosen_variants

Variant = Callable[[config_dict.ConfigDict], None]


def _base() -> config_dict.ConfigDict:
    """The paper's run with SD v1 (section 4)."""
    config = defaults(DistillConfig)
    config.generation, config.student = "v1", "bk_base"
    return config


def _sets(settings: dict[str, Any]) -> Variant:
    return lambda config: config.update_from_flattened_dict(settings)


def _batch(size: int) -> Variant:
    def apply(config: config_dict.ConfigDict) -> None:
        micro_batch = config.batch_size // config.accumulation  # unchanged
        config.batch_size = size // 8 if _is_shapes(config) else size
        config.accumulation = max(1, config.batch_size // micro_batch)

    return apply


def _rate(rate: float) -> Variant:
    def apply(config: config_dict.ConfigDict) -> None:
        config.optimizer.learning_rate = 10 * rate if _is_shapes(config) else rate

    return apply


def _pairs(count: int, of_shapes: int) -> Variant:
    def apply(config: config_dict.ConfigDict) -> None:
        config.examples = of_shapes if _is_shapes(config) else count

    return apply


def _scored(config: config_dict.ConfigDict) -> None:
    config.evaluate_first, config.sheets.steps = True, 0
    if _is_shapes(config):
        config.evaluators = ("attribute_accuracy", "clip_score_shapes", "fd_clip_shapes")
        config.scoring.update(
            {"reference": "shapes", "images": 256, "batch_size": 64, "steps": 12, "guidance_scale": 1.5}
        )
    else:
        config.evaluators, config.scoring.images = ("clip_score",), 1000


def _is_shapes(config: config_dict.ConfigDict) -> bool:
    return config.data.startswith("shapes_world/")


SHAPES = {  # as in configs/ablation.py
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
    "scored": _scored,
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
    """The config of a comma-separated list of variants; the generation is applied first and `runlocal` last."""
    names = chosen_variants(variants, VARIANTS, GROUPS)
    config = _base()
    for name in sorted(names, key=lambda name: (name not in GENERATIONS, name == "runlocal")):
        VARIANTS[name](config)
    return config
