"""The three losses of BK-SDM (arXiv 2305.15798, section 3.2), each in float32."""

import dataclasses
from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from bksdm_jax.pruning.plan import FeaturePair


@dataclasses.dataclass(frozen=True)
class LossWeights:
    """Weights of the terms. Output and feature both 0: training without distillation, the teacher isn't run."""

    task: float = 1.0
    output: float = 1.0
    feature: float = 1.0

    @property
    def distils(self) -> bool:
        """Whether the teacher is needed."""
        return self.output != 0 or self.feature != 0


def mean_squared_error(a: jax.Array, b: jax.Array) -> jax.Array:
    """mean((a - b)^2) in float32, [] from two arrays of one shape."""
    return jnp.mean(jnp.square(a.astype(jnp.float32) - b.astype(jnp.float32)))


def distillation_terms(
    weights: LossWeights,
    target: jax.Array,
    student: jax.Array,
    student_features: Mapping[str, jax.Array],
    teacher: jax.Array | None = None,
    teacher_features: Mapping[str, jax.Array] | None = None,
    pairs: Sequence[FeaturePair] = (),
) -> dict[str, jax.Array]:
    """Every term by name, unweighted, and their weighted sum as `loss`.

    `loss_task` compares prediction and target, `loss_output` the predictions of student and teacher; `loss_feature` is
    the sum over the pairs of each pair's mean squared error, which stands under `feature/STUDENT NAME`.

    Args:
        weights: of the terms; a term with weight 0 that would need the teacher is left out.
        target: what the student is asked for, [B, H, W, C].
        student, student_features: its prediction, and what it sowed.
        teacher, teacher_features: likewise; None if `weights.distils` is false.
        pairs: which features are compared.
    """
    terms = {"loss_task": mean_squared_error(student, target)}
    total = weights.task * terms["loss_task"]
    if weights.output:
        terms["loss_output"] = mean_squared_error(student, teacher)
        total += weights.output * terms["loss_output"]
    if weights.feature:
        each = {
            f"feature/{pair.student}": mean_squared_error(
                student_features[pair.student], teacher_features[pair.teacher]
            )
            for pair in pairs
        }
        terms["loss_feature"] = sum(each.values(), start=jnp.zeros((), jnp.float32))
        total += weights.feature * terms["loss_feature"]
        terms |= each
    return {"loss": total, **terms}
