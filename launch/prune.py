r"""Prunes a teacher to a student.

  python -m launch.prune --config=configs/prune.py --config.teacher=DIR --config.student=bk_small --workdir=DIR
  python -m launch.prune --config=configs/prune.py --config.teacher=shapes_teacher --config.student=bk_tiny \
    --workdir=DIR

`teacher` is a Stable Diffusion pipeline: a folder in Diffusers' layout, a single-file checkpoint or a hub id.
`student` is a preset (sd, bk_base, bk_small, bk_tiny, no_mid) or a comma-separated list of the teacher's blocks to
remove, by Diffusers' names:
`down_blocks.1.resnets.1,down_blocks.1.attentions.1,up_blocks.2.resnets.1,up_blocks.2.attentions.1`;
`down_blocks.1.resnets.0:interpolate` puts an interpolation in the ResNet's place. Or it is a criterion and a size, such
as `taylor:482M`, with the scores that `launch.analyse` wrote in `block_scores`; `random7:482M` takes random blocks, the
same for the same number.
The workdir becomes the student's pipeline folder, or contains a single file (`format`). The student gets the teacher's
weights (`student_init=teacher`), random ones, or those of another such student; the other networks are the teacher's.

Prints which teacher block each student block comes from, and the parameters and multiply-adds of both by stage.
"""

from pathlib import Path

from bksdm_jax.pruning.config import PruneConfig, require_settings
from launch.command import run


def main(config: PruneConfig, workdir: Path) -> None:
    """Writes the student and prints its blocks and cost."""
    from bksdm_jax.cost.table import cost_table
    from bksdm_jax.pruning.prune import prune
    from bksdm_jax.pruning.removal import plan_text

    plan, student = prune(config, workdir)
    print(plan_text(plan))
    print()
    print(cost_table(plan.teacher, plan.student, plan.blocks, plan.teacher.sample_size or 64))
    print(f"\n{student}")


if __name__ == "__main__":
    run(__doc__, PruneConfig, main, require_settings)
