"""Timing a U-Net call, a guided image or an update on this machine's device, with arbitrary weights.

python -m launch.bench --config=configs/bench.py:v1,bk_small
python -m launch.bench --config=configs/bench.py:update,small,bk_base

Takes minutes on a CPU at full size (`--config.steps=0`: the U-Net call only), less on an accelerator.
"""

from ml_collections import config_dict

GENERATIONS = ("v1", "v2")
WHAT = ("unet", "update", "data")
STUDENTS = ("sd", "bk_base", "bk_small", "bk_tiny", "no_mid")


def get_config(variants: str = "") -> config_dict.ConfigDict:
    """The defaults of `launch.bench`; variants: `v1` or `v2`, `unet`, `update` or `data`, `small`, and a preset."""
    config = config_dict.ConfigDict()
    config.what = "unet"  # update, or data
    config.generation = "v1"
    config.student = "sd"  # a preset, or comma-separated names of removed blocks
    config.widths = ()  # channels of the U-Net's stages; empty: Stable Diffusion's
    config.batch_size = 1
    config.dtype = "float32"  # or bfloat16
    config.attention = "auto"  # of the U-Net: auto, xla, chunked, cudnn (NVIDIA), flash (TPU)
    config.remat = "none"  # of an update: none, products, attention, blocks, full
    config.resolution = 512
    config.steps = 25  # PNDM steps of the image; 0: the U-Net call only
    config.guidance_scale = 7.5
    config.repeats = 5
    names = [name.strip() for name in variants.split(",") if name.strip()]
    for name in names:
        if name not in (*GENERATIONS, *WHAT, *STUDENTS, "small"):
            raise ValueError(f"unknown variant {name!r}; known: {', '.join((*GENERATIONS, *WHAT, 'small', *STUDENTS))}")
    for key, group in (("generation", GENERATIONS), ("what", WHAT), ("student", STUDENTS)):
        chosen = [name for name in names if name in group]
        if len(chosen) > 1:
            raise ValueError(f"variants {' and '.join(chosen)} exclude each other")
        config[key] = chosen[0] if chosen else config[key]
    if "small" in names:  # seconds on a CPU
        config.widths, config.batch_size, config.resolution = (32, 64, 128, 128), 32, 64
    return config
