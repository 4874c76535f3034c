"""The three losses of BK-SDM (arXiv 2305.15798, section 3.2), each in float32."""

from collections.abc import Mapping, Sequence

import jax
import jax.numpy as jnp

from bksdm_jax.pruning.removal import FeaturePair
from bksdm_jax.tasks.distill.config import LossWeights
from bksdm_jax.tasks.losses import mean_squared_error


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
