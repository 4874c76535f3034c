"""Sampling as in the paper's evaluation: PNDM, 25 steps, guidance 7.5.

python -m launch.sample --config=configs/sample.py --config.model=DIR --config.prompt="a red bicycle" --workdir=DIR
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.sample`."""
    config = config_dict.ConfigDict()
    config.model = ""  # pipeline folder, single file, or id on the hub; required
    config.revision = ""  # branch, tag or commit on the hub
    config.variant = ""  # of the weights: fp16, non_ema, ...
    config.tokenizer = ""  # of a single file: folder or id on the hub; empty: CLIP's, from the hub
    config.prediction = ""  # of a single file of SD 2.x: epsilon or v_prediction
    config.prompts = ""  # .txt (one per line) or .csv (file_name,text)
    config.prompt = ""  # or one prompt
    config.negative_prompt = ""
    config.seed = 0
    config.steps = 25  # PNDM makes one U-Net call more
    config.batch_size = 4  # images per program call; doesn't change the images
    config.guidance_scale = 7.5  # at most 1: off
    config.resolution = 0  # pixels; 0: the model's own
    config.sampler = "pndm"  # or ddim
    config.dtype = "float32"  # or bfloat16
    config.attention = "auto"  # of the U-Net: auto, xla, chunked, cudnn (NVIDIA), flash (TPU)
    return config
