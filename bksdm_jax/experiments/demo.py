"""The demo: what distillation does for a pruned student, seen on the shapes world in minutes."""

import dataclasses
from pathlib import Path

from bksdm_jax.experiments.comparison import ComparisonConfig, Row, compare
from bksdm_jax.training.losses import LossWeights

ROWS = (
    Row("teacher", "teacher", init=""),
    Row("untrained", "student, not trained"),
    Row("no_kd", "student, trained without KD", loss=LossWeights(1.0, 0.0, 0.0)),
    Row("kd", "student, trained with KD", loss=LossWeights(1.0, 1.0, 1.0)),
)


@dataclasses.dataclass(frozen=True)
class DemoConfig(ComparisonConfig):
    """The demo's settings."""

    title: str = "BK-SDM on the shapes world"
    explanation: str = ""


def demo(config: DemoConfig, workdir: Path) -> Path | None:
    """Prunes the shapes teacher, trains the student with and without distillation, samples, scores, reports.

    Returns:
        `report.html`, or None if interrupted (the same call continues it).

    Raises:
        InputError: as `compare`.
    """
    return compare(config, ROWS, workdir)
