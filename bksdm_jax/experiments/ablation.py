"""The paper's ablation (Table 4) on the shapes world: initial weights x terms of the loss."""

from pathlib import Path

from bksdm_jax.experiments.comparison import ComparisonConfig, Row, compare
from bksdm_jax.tasks.distill.losses import LossWeights

_TERMS = {
    "task": ("task", LossWeights(1.0, 0.0, 0.0)),
    "output": ("task + output KD", LossWeights(1.0, 1.0, 0.0)),
    "feature": ("task + output KD + feature KD", LossWeights(1.0, 1.0, 1.0)),
}
_INITS = {"random": "random weights", "teacher": "teacher's weights"}
ROWS = (
    Row("teacher", "teacher", init=""),
    *(
        Row(f"{init}_{terms}", f"{start}, {label}", init, loss)
        for init, start in _INITS.items()
        for terms, (label, loss) in _TERMS.items()
    ),
)
TITLE = "Initial weights and terms of the loss, on the shapes world"
EXPLANATION = (
    "The six rows of the paper's Table 4: a student that starts from random weights or from the teacher's, trained on "
    "the task alone, with output distillation, and with feature distillation besides. All see the same batches."
)


def ablation(config: ComparisonConfig, workdir: Path) -> Path | None:
    """Trains, samples and scores the six rows beside the teacher.

    Returns:
        `report.html`, or None if interrupted (the same call continues it).

    Raises:
        InputError: as `compare`.
    """
    return compare(config, ROWS, workdir, TITLE, EXPLANATION)
