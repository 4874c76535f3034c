"""Comparing a pipeline with PyTorch Diffusers in float32: minutes at full size on a CPU (`--config.steps=0`: no image).

python -m launch.compare --config=configs/compare.py --config.model=MODEL --workdir=runs/compared

Expect every network within 1e-4 of its largest output, and images within 2 levels of 255.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.compare`."""
    config = config_dict.ConfigDict()
    config.model = ""  # pipeline folder, single file, or id on the hub; required
    config.revision = ""  # branch, tag or commit on the hub
    config.variant = ""  # of the weights: fp16, non_ema, ...
    config.tokenizer = ""  # of a single file: folder or id on the hub; empty: CLIP's, from the hub
    config.prediction = ""  # of a single file of SD 2.x: epsilon or v_prediction
    config.prompts = ("a photo of a cat", "a red bicycle in front of a house")
    config.seed = 0
    config.steps = 25  # PNDM; 0: the networks alone
    config.guidance_scale = 7.5
    config.resolution = 0  # pixels; 0: what the model was made for
    return config
