"""Several runs of `configs/distill.py` in sequence, with one table and plot.

  python -m launch.sweep --config=configs/sweep.py:shapes,rates --workdir=runs/rates
  python -m launch.sweep --config=configs/sweep.py:v2_base,ablation --config.settings="('teacher=DIR', 'data=DIR')" \
    --workdir=DIR
  python -m launch.sweep --config=configs/sweep.py:shapes,criteria --config.block_scores=DIR --workdir=DIR
  python -m launch.sweep --config=configs/sweep.py:shapes,rates \
    --config.settings="(\"evaluators=('clip_score_shapes',)\", 'scoring.images=64')" --workdir=DIR

Variants, one generation and one set of runs:
  v1, v2_base, v2, shapes (default; a run takes about 15 minutes on two CPU cores)
  students   bk_base, bk_small, bk_tiny
  batches    bk_small at three batch sizes
  ablation   bk_small from random and from the teacher's weights; task loss, plus output KD, plus feature KD (Table 4)
  no_kd      the three students without distillation (Table 3)
  rates      bk_small at five learning rates (Table 13)
  volumes    bk_small on three volumes of data (Fig. 11)
  mid        only the mid stage removed, with and without distillation (Tables 10, 11)
  criteria   as small as bk_small: one student by each criterion, bk_small with two seeds, six random ones; bk_base
             beside them. Needs --config.block_scores=DIR, of launch.analyse with all criteria

The paper's scores of these runs are in `PUBLISHED` (bksdm_jax/pruning/presets.py).

All settings: `python -m launch.sweep --help`.
"""

from ml_collections import config_dict

from bksdm_jax.pruning.targets import CRITERIA
from configs.distill import BATCHES, GENERATIONS, PAIRS, RATES
from launch.defaults import defaults
from launch.runs import SweepConfig
from launch.variants import chosen_variants

RUNS = {
    "students": ("bk_base", "bk_small", "bk_tiny"),
    "batches": tuple(f"bk_small,batch_{size}" for size in BATCHES),
    "ablation": (
        "bk_small,random_init,no_kd",
        "bk_small,random_init,no_feature",
        "bk_small,random_init",
        "bk_small,no_kd",
        "bk_small,no_feature",
        "bk_small",
    ),
    "no_kd": ("bk_base,no_kd", "bk_small,no_kd", "bk_tiny,no_kd"),
    "rates": tuple(f"bk_small,lr_{rate}" for rate in RATES),
    "volumes": tuple(f"bk_small,{name}" for name in PAIRS),
    "mid": ("no_mid", "no_mid,no_kd"),
    "criteria": (
        *("scored,bk_base", "scored,bk_small", "scored,bk_small seed=1"),
        *CRITERIA,
        *(f"random{seed}" for seed in range(6)),
    ),
}
SMALL = {"v1": "482.4M", "v2_base": "485.8M", "v2": "485.8M", "shapes": "3.84M"}
"""Generation -> the size of `bk_small`, for students by a criterion."""


def get_config(variants: str = "") -> config_dict.ConfigDict:
    """The runs of a comma-separated generation and name of `RUNS`."""
    names = chosen_variants(variants, (*GENERATIONS, *RUNS), (GENERATIONS, tuple(RUNS)))
    generation = next((name for name in names if name in GENERATIONS), "shapes")
    chosen = [name for name in names if name in RUNS]
    config = defaults(SweepConfig)
    config.runs = tuple(_run(generation, run) for run in (RUNS[chosen[0]] if chosen else ()))
    return config


def _run(generation: str, run: str) -> str:
    if run in CRITERIA or run.startswith("random"):
        return f"{generation},scored student={run}:{SMALL[generation]}"
    return f"{generation},{run}"
