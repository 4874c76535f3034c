"""Times a U-Net call, guided sampling or a distillation step on this machine's device, with random weights.

  python -m launch.bench --config=configs/bench.py:v1,bk_small
  python -m launch.bench --config=configs/bench.py:v1 --config.cut=1  # with a call that reuses a deep feature
  python -m launch.bench --config=configs/bench.py:update,small,bk_base
  python -m launch.bench --config=configs/bench.py:finetune,lora,small,bk_base
  python -m launch.bench --config=configs/bench.py:update,small,bk_base --config.profile=runs/trace  # kernels by kind
  python -m launch.bench --config=configs/bench.py:deep_cache --config.model=MODEL  # time saved, and distance of images

At full size this takes minutes on a CPU (`--config.steps=0` times only the U-Net call), less on an accelerator.

Variants, at most one of each line:
  generation: v1, v2
  what to time: unet, update (of a distillation), finetune (an update of U-Net and text encoder), data,
                deep_cache (of a trained model), checkpoints, scores, scores_beside (torch-fidelity and OpenCLIP)
  student: sd, bk_base, bk_small, bk_tiny, no_mid
  of finetune: lora (rank 16; otherwise all weights of U-Net and text encoder are trained)
  size: small (a tenth of the widths, seconds on a CPU)

All settings: `python -m launch.bench --help`.
"""

from ml_collections import config_dict

from bksdm_jax.perf.config import BENCHES, BenchConfig
from bksdm_jax.pipelines.generations import TEACHERS
from bksdm_jax.pruning.presets import PRESETS
from launch.defaults import defaults
from launch.variants import chosen_variants

GROUPS = {"generation": tuple(TEACHERS), "what": BENCHES, "student": tuple(PRESETS)}
"""Setting -> variants that set it."""
VARIANTS = (*(name for group in GROUPS.values() for name in group), "small", "lora")


def get_config(variants: str = "") -> config_dict.ConfigDict:
    """The settings of a comma-separated list of variants, at most one of each group."""
    names = chosen_variants(variants, VARIANTS, list(GROUPS.values()))
    config = defaults(BenchConfig)
    for key, group in GROUPS.items():
        config[key] = next((name for name in group if name in names), config[key])
    if config.what == "deep_cache":
        config.guidance_scale = 1.5  # the shapes teacher's
    if "lora" in names:
        config.rank = 16
    if "small" in names:
        config.widths, config.batch_size, config.resolution = (32, 64, 128, 128), 32, 64
    return config
