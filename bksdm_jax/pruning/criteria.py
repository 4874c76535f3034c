"""Scores of a U-Net's blocks from its weights, and the list of blocks that a target of size leaves out."""

from collections.abc import Mapping
from typing import Any

import jax
import numpy as np

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.cost.counts import Cost
from bksdm_jax.models.unet import block_of
from bksdm_jax.models.unet_table import UNetConfig, replaceable
from bksdm_jax.pruning.removal import INTERPOLATE
from bksdm_jax.pruning.targets import Target


def magnitude(config: UNetConfig, params: Mapping[str, Any]) -> dict[str, float]:
    """The magnitude score of each replaceable block: large weights are taken to matter.

    The mean over all output neurons of the block's weight matrices of the sum of |W| over a neuron's inputs; a neuron
    of a convolution is an output channel. Biases and norms don't count.
    """
    return _scores(config, params)


def taylor(config: UNetConfig, params: Mapping[str, Any], gradient: Mapping[str, Any]) -> dict[str, float]:
    """The Taylor score: as `magnitude`, with |dL/dW * W|, the first-order change of the loss if W were 0.

    `gradient` has the structure of `params`: dL/dW, L the mean task loss over a calibration set.
    """
    return _scores(config, jax.tree.map(lambda weight, slope: weight * slope, dict(params), dict(gradient)))


def _scores(config: UNetConfig, values: Mapping[str, Any]) -> dict[str, float]:
    sums = dict.fromkeys(replaceable(config), 0.0)
    neurons = dict.fromkeys(sums, 0)
    for path, leaf in trees.flatten(values).items():
        block = block_of(path)
        if block in sums and path.endswith("/kernel"):
            sums[block] += float(np.abs(np.asarray(leaf, np.float64)).sum())
            neurons[block] += leaf.shape[-1]
    return {block: total / neurons[block] for block, total in sums.items()}


def ranked(scores: Mapping[str, float]) -> tuple[str, ...]:
    """The blocks, the least important first; equals in the order of the forward pass."""
    return tuple(sorted(scores, key=lambda block: scores[block]))


def chosen(scores: Mapping[str, float], sizes: Mapping[str, Cost], whole: Cost, target: Target) -> tuple[str, ...]:
    """The list of removed blocks that a target gives: the first of `ranked`, as few as reach it.

    Args:
        scores: of all replaceable blocks.
        sizes: of the same.
        whole: of the teacher's U-Net.
        target: at most so many parameters or multiply-adds.

    Returns:
        names for `plan_removal`: interpolations stand for the ResNets.

    Raises:
        InputError: no list reaches the target, or the teacher is that small already.
    """
    left, removed = getattr(whole, target.of), []
    if left <= target.amount:
        raise InputError(f"student: {target.text}: the teacher has only {target.shown(left)}; name a smaller target")
    for block in ranked(scores):
        left -= getattr(sizes[block], target.of)
        removed.append(f"{block}{INTERPOLATE}" if ".resnets." in block else block)
        if left <= target.amount:
            return tuple(removed)
    raise InputError(
        f"student: {target.text}: no list of blocks reaches it; without all {len(removed)} blocks that can be removed, "
        f"{target.shown(left)} are left"
    )
