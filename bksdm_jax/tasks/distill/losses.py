"""The three losses of BK-SDM (arXiv 2305.15798, section 3.2), each in float32."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from bksdm_jax.base.errors import InputError, finite_number, known_name, nearest
from bksdm_jax.pruning.removal import FeaturePair, RemovalPlan


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights and options of the loss; with output and feature both 0 the teacher isn't run.

    Attributes:
        task, output, feature: weights of the three terms.
        min_snr_gamma: above 0, the task term weighs each image by its noise level (Hang et al. 2023, section 3.4).
        feature_source, feature_scales: which features are compared, and their weights, see `weighted_pairs`.
    """

    task: float = 1.0
    output: float = 1.0
    feature: float = 1.0
    min_snr_gamma: float = 0.0
    feature_source: str = "stages"
    feature_scales: tuple[str, ...] = ()

    def require_valid(self) -> None:
        """Raises `InputError` with the key of a bad weight or source; `weighted_pairs` checks `feature_scales`."""
        for field in dataclasses.fields(self):
            if isinstance(field.default, float):
                finite_number("config", f"loss.{field.name}", getattr(self, field.name), 0)
        known_name("config", "loss.feature_source", self.feature_source, SOURCES)

    @property
    def distils(self) -> bool:
        """Whether the teacher is needed."""
        return self.output != 0 or self.feature != 0


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
                f"loss.feature_scales: no feature {name!r}{nearest(name, known)}; known: {', '.join(known)}"
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


def mean_squared_error(a: jax.Array, b: jax.Array) -> jax.Array:
    """mean((a - b)^2) in float32, [] from two arrays of one shape."""
    return jnp.mean(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)))


def min_snr_weight(gamma: float, prediction_type: str, alpha_bar: jax.Array) -> jax.Array:
    """min(SNR, gamma) for `sample`, / SNR for `epsilon`, / (SNR + 1) for `v_prediction`; SNR = abar / (1 - abar).

    [B] -> [B].
    """
    snr = alpha_bar / (1.0 - alpha_bar)
    return jnp.minimum(snr, gamma) / {"epsilon": snr, "v_prediction": snr + 1.0, "sample": 1.0}[prediction_type]


def distillation_terms(
    weights: LossWeights,
    target: jax.Array,
    student: jax.Array,
    student_features: Mapping[str, jax.Array],
    teacher: jax.Array | None = None,
    teacher_features: Mapping[str, jax.Array] | None = None,
    pairs: Sequence[tuple[FeaturePair, float]] = (),
    image_weights: jax.Array | None = None,
) -> dict[str, jax.Array]:
    """Every term by name, unweighted, and their weighted sum as `loss`.

    `loss_task` compares the student's prediction with the target, `loss_output` with the teacher's prediction;
    `loss_feature` is the weighted sum of the pairs' mean squared errors, which are given as `feature/STUDENT NAME`.

    Args:
        weights: of the terms; distillation terms with weight 0 are left out.
        target: of the prediction, [B, H, W, C].
        student, student_features: the student's prediction, and its captured features by name.
        teacher, teacher_features: the teacher's; None if `weights.distils` is false.
        pairs: from `weighted_pairs`.
        image_weights: of the images in the task term, [B]; None: all 1.
    """
    if image_weights is None:
        terms = {"loss_task": mean_squared_error(student, target)}
    else:
        terms = {"loss_task": jnp.mean(image_weights * jax.vmap(mean_squared_error)(student, target))}
    total = weights.task * terms["loss_task"]
    if weights.output:
        terms["loss_output"] = mean_squared_error(student, teacher)
        total += weights.output * terms["loss_output"]
    if weights.feature:
        terms["loss_feature"] = jnp.zeros((), jnp.float32)
        for pair, weight in pairs:
            error = mean_squared_error(student_features[pair.student], teacher_features[pair.teacher])
            terms[f"feature/{pair.student}"] = error
            terms["loss_feature"] += weight * error
        total += weights.feature * terms["loss_feature"]
    return {"loss": total, **terms}
