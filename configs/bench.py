"""Times a U-Net call, guided sampling or a distillation step on this machine's device, with random weights.

  python -m launch.bench --config=configs/bench.py:v1,bk_small
  python -m launch.bench --config=configs/bench.py:v1 --config.cut=1  # with a call that reuses a deep feature
  python -m launch.bench --config=configs/bench.py:update,small,bk_base
  python -m launch.bench --config=configs/bench.py:deep_cache --config.model=MODEL  # time saved, and distance of images

At full size this takes minutes on a CPU (`--config.steps=0` times only the U-Net call), less on an accelerator.
Variants: `v1` or `v2`; `unet`, `update`, `data`, `deep_cache` (of a trained model), `scores` or
`scores_beside` (torch-fidelity and OpenCLIP); a preset; `small` (a tenth
of the widths, seconds on a CPU). All settings are explained in `BenchConfig` (bksdm_jax/perf/bench.py).
"""

from ml_collections import config_dict

from bksdm_jax.perf.config import BenchConfig
from bksdm_jax.pruning.presets import PRESETS
from launch.defaults import defaults

GENERATIONS = ("v1", "v2")
WHAT = ("unet", "update", "data", "deep_cache", "scores", "scores_beside")
STUDENTS = tuple(PRESETS)


def get_config(variants: str = "") -> config_dict.ConfigDict:
    """The settings of a comma-separated list of variants, at most one of each group."""
    config = defaults(BenchConfig)
    names = [name.strip() for name in variants.split(",") if name.strip()]
    for name in names:
        if name not in (*GENERATIONS, *WHAT, *STUDENTS, "small"):
            raise ValueError(f"unknown variant {name!r}; known: {', '.join((*GENERATIONS, *WHAT, 'small', *STUDENTS))}")
    for key, group in (("generation", GENERATIONS), ("what", WHAT), ("student", STUDENTS)):
        chosen = [name for name in names if name in group]
        if len(chosen) > 1:
            raise ValueError(f"variants {' and '.join(chosen)} exclude each other")
        config[key] = chosen[0] if chosen else config[key]
    if config.what == "deep_cache":
        config.guidance_scale = 1.5  # the shapes teacher's
    if "small" in names:
        config.widths, config.batch_size, config.resolution = (32, 64, 128, 128), 32, 64
    return config
