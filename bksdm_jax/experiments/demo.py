"""The demo: what distillation does for a pruned student, seen on the shapes world in minutes."""

from pathlib import Path

from bksdm_jax.experiments.comparison import ComparisonConfig, Row, compare
from bksdm_jax.tasks.distill.losses import LossWeights

ROWS = (
    Row("teacher", "teacher", init=""),
    Row("untrained", "student, not trained"),
    Row("no_kd", "student, trained without KD", loss=LossWeights(1.0, 0.0, 0.0)),
    Row("kd", "student, trained with KD", loss=LossWeights(1.0, 1.0, 1.0)),
)


TITLE = "BK-SDM on the shapes world"
EXPLANATION = (
    "A small Stable Diffusion loses a part of its U-Net. Beside the teacher stand the student as it is cut, the same "
    "student after training on the task alone, and after as many updates with knowledge distillation. Both trainings "
    "start from the same weights and see the same batches with the same noise, far too few to converge: what differs "
    "is how fast the student recovers."
)


def demo(config: ComparisonConfig, workdir: Path) -> Path | None:
    """Prunes the shapes teacher, trains the student with and without distillation, samples, scores, reports.

    Returns:
        `report.html`, or None if interrupted (the same call continues it).

    Raises:
        InputError: as `compare`.
    """
    return compare(config, ROWS, workdir, TITLE, EXPLANATION)
