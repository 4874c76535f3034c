"""The experiments on the shapes world, by name."""

from bksdm_jax.experiments.comparison import Experiment, Row
from bksdm_jax.tasks.distill.config import LossWeights

_TEACHER = Row("teacher", "teacher", init="")
_TASK, _OUTPUT, _FEATURE = LossWeights(1.0, 0.0, 0.0), LossWeights(1.0, 1.0, 0.0), LossWeights(1.0, 1.0, 1.0)

EXPERIMENTS = {
    "demo": Experiment(
        (
            _TEACHER,
            Row("untrained", "student, not trained"),
            Row("no_kd", "student, trained without KD", loss=_TASK),
            Row("kd", "student, trained with KD", loss=_FEATURE),
        ),
        "BK-SDM on the shapes world",
        "A small Stable Diffusion loses a part of its U-Net. The rows are the teacher, the pruned student, the same "
        "student trained on the task alone, and trained for as many updates with knowledge distillation. Both runs "
        "start from the same weights and see the same batches with the same noise. They are far too short to converge: "
        "they show how fast the student recovers.",
    ),
    "ablation": Experiment(
        (
            _TEACHER,
            Row("random_task", "random weights, task", "random", _TASK),
            Row("random_output", "random weights, task + output KD", "random", _OUTPUT),
            Row("random_feature", "random weights, task + output KD + feature KD", "random", _FEATURE),
            Row("teacher_task", "teacher's weights, task", "teacher", _TASK),
            Row("teacher_output", "teacher's weights, task + output KD", "teacher", _OUTPUT),
            Row("teacher_feature", "teacher's weights, task + output KD + feature KD", "teacher", _FEATURE),
        ),
        "Initial weights and terms of the loss, on the shapes world",
        "The six rows of the paper's Table 4: a student with random initial weights or the teacher's, trained on the "
        "task alone, with output distillation, and with output and feature distillation. All see the same batches.",
    ),
}
