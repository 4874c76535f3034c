"""Parameters and multiply-adds of a pipeline and its students: seconds, on any machine.

python -m launch.cost --config=configs/cost.py:v1

Expect the paper's counts: 859,520,964 (v1) and 865,910,724 (v2) parameters, 338.75 and 339.24 GMACs a U-Net call.
"""

from ml_collections import config_dict


def get_config(generation: str = "") -> config_dict.ConfigDict:
    """The defaults of `launch.cost`; variant `v1` or `v2`: Stable Diffusion itself."""
    config = config_dict.ConfigDict()
    config.generation = generation
    config.pipeline = ""  # or a pipeline folder, single file, or id on the hub
    config.students = ""  # presets or lists of removed blocks (joined by +), separated by commas; empty: every preset
    config.resolution = 0  # pixels; 0: what the U-Net was made for
    config.steps = 25  # U-Net calls of one image
    config.latency = False  # time the networks on this machine's device
    config.dtype = "float32"  # of what is timed
    config.repeats = 5
    return config
