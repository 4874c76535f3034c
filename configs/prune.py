"""Cutting a student from a teacher: seconds, and memory for the teacher's weights, on any CPU.

  python -m launch.prune --config=configs/prune.py --config.teacher=DIR --config.student=bk_tiny --workdir=DIR

Expect from an SD v1 teacher 579,384,964 (bk_base), 482,346,884 (bk_small) or 323,384,964 (bk_tiny) U-Net parameters.
"""

from ml_collections import config_dict


def get_config() -> config_dict.ConfigDict:
    """The defaults of `launch.prune`."""
    config = config_dict.ConfigDict()
    config.teacher = ""  # pipeline folder, single file, or id on the hub; required
    config.revision = ""  # branch, tag or commit on the hub
    config.variant = ""  # of the weights: fp16, non_ema, ...
    config.tokenizer = ""  # of a single file: folder or id on the hub; empty: CLIP's, from the hub
    config.prediction = ""  # of a single file of SD 2.x: epsilon or v_prediction
    config.student = "bk_small"  # preset, or comma-separated names of removed blocks
    config.student_init = "teacher"  # or random, or a pipeline with that student
    config.init_revision = ""  # of that pipeline on the hub
    config.init_variant = ""  # of its weights
    config.seed = 0  # of random weights
    config.format = "safetensors"  # or flax, single_file, single_file_spaced
    config.save_dtype = ""  # float32, float16, bfloat16; empty: the U-Net float32, the rest as it was
    config.safety_checker = True  # the teacher's is copied, where it has one
    return config
