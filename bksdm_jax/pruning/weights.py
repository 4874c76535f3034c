"""The student's initial weights: its teacher's, or random."""

import math
import re
from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bksdm_jax.base import trees
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.pruning.removal import RemovalPlan


def copy_weights(plan: RemovalPlan, teacher: Mapping[str, Any]) -> dict[str, Any]:
    """The teacher's weights of the remaining blocks, by the student's names.

    Args:
        plan: teacher and student.
        teacher: parameters of the teacher's U-Net, nested by Flax names. The result shares its leaves.

    Returns:
        parameters of the student's U-Net.
    """
    origin = {_path(student): _path(source) for student, source in (*plan.blocks, *plan.layers)}
    flat = trees.flatten(teacher)
    student = {}
    for path in trees.flatten(parameter_shapes(plan.student)):
        parts = path.split("/")
        # The longest prefix in the plan: a transformer layer, a block, or none.
        k = next((k for k in (3, 2) if "/".join(parts[:k]) in origin), 0)
        student[path] = flat["/".join([origin["/".join(parts[:k])], *parts[k:]]) if k else path]
    return trees.unflatten(student)


def random_weights(config: UNetConfig, seed: int) -> dict[str, Any]:
    """PyTorch's default initialisation, as in the paper's randomly initialised students.

    Kernels and their biases are uniform in ±1/sqrt(fan_in); norms have scale 1 and bias 0.

    Returns:
        float32 numpy parameters, nested by Flax names.
    """
    shapes = trees.flatten(parameter_shapes(config))
    weights = {}
    for index, (path, leaf) in enumerate(sorted(shapes.items())):
        kernel = shapes.get(path.rpartition("/")[0] + "/kernel")
        if kernel is None:
            weights[path] = np.full(leaf.shape, float(path.endswith("/scale")), np.float32)
        else:
            bound = 1 / math.sqrt(math.prod(kernel.shape[:-1]))
            key = jax.random.fold_in(jax.random.key(seed), index)
            weights[path] = np.asarray(jax.random.uniform(key, leaf.shape, minval=-bound, maxval=bound))
    return trees.unflatten(weights)


def _path(name: str) -> str:
    """`mid_block.attentions.0.transformer_blocks.1` -> `mid_block/attentions_0/transformer_blocks_1`."""
    return re.sub(r"\.(\d+)", r"_\1", name).replace(".", "/")
