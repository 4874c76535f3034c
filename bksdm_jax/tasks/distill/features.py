"""Which features of teacher and student are compared, and their weights; nothing here imports JAX."""

import math
from collections.abc import Callable, Mapping, Sequence

from bksdm_jax.base.errors import InputError, known_name, listed, nearest
from bksdm_jax.pruning.removal import FeaturePair, RemovalPlan

SOURCES: dict[str, Callable[[RemovalPlan], tuple[FeaturePair, ...]]] = {
    "stages": lambda plan: plan.features,
    "self_attention": lambda plan: tuple(
        FeaturePair(f"{theirs}.attn1", f"{ours}.attn1") for ours, theirs in plan.layers
    ),
}
"""Name -> feature pairs: `stages` as in the paper, `self_attention` as in KOALA (Lee et al. 2023, section 3.3)."""


def weighted_pairs(plan: RemovalPlan, source: str, scales: Sequence[str]) -> tuple[tuple[FeaturePair, float], ...]:
    """The compared feature pairs of a key of `SOURCES`, with their weights within the feature term.

    Each of `scales` is `NAME=WEIGHT` for a student's feature, or for all features of a stage. The last match counts;
    the default is 1. Raises `InputError` for an unknown source or name, or a weight that isn't a number of at least 0.
    """
    known_name("config", "loss.feature_source", source, SOURCES)
    pairs = SOURCES[source](plan)
    known = [pair.student for pair in pairs]
    weights = dict.fromkeys(known, 1.0)
    for entry in scales:
        name, _, text = str(entry).partition("=")
        fitting = [one for one in known if one == name or one.startswith(f"{name}.")]
        if not name or not fitting:
            raise InputError(
                f"loss.feature_scales: no feature {name!r}{nearest(name, known)}; known: {listed(known, name)}"
            )
        try:
            weight = float(text)
        except ValueError:
            weight = math.nan
        if not 0 <= weight < math.inf:
            raise InputError(f"loss.feature_scales: {entry!r}; expected NAME=WEIGHT with a weight of at least 0")
        weights |= dict.fromkeys(fitting, weight)
    return tuple((pair, weights[pair.student]) for pair in pairs)


def shares(pairs: Sequence[tuple[FeaturePair, float]], values: Mapping[str, float]) -> dict[str, float]:
    """Each pair's share of `loss_feature`, as `share/NAME`, from the metrics of an update."""
    return {
        f"share/{pair.student}": weight * values[f"feature/{pair.student}"] / (values["loss_feature"] or 1.0)
        for pair, weight in pairs
    }
