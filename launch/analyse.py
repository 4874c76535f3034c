r"""Scores the blocks of a teacher, to choose a student by.

  python -m launch.analyse --config=configs/analyse.py --config.teacher=DIR --config.data=DIR --workdir=DIR
  python -m launch.analyse --config=configs/analyse.py:shapes,sensitivity --workdir=runs/blocks
  python -m launch.prune --config=configs/prune.py --config.teacher=shapes_teacher --config.student=clip:3.8M \
    --config.block_scores=runs/blocks --workdir=runs/clip

`criteria` are magnitude (of the weights), taylor (also of the task loss's gradient on a calibration set),
output_error (of the U-Net without the block), clip and frechet (of images that are sampled without the block, and
scored by the metrics of the group `sensitivity`; pairs of a ResNet and its transformer, the mid block, and the skip
connections of the up stages, one by one and by stage, are left out too). Whatever the number of blocks, three programs
of the U-Net are compiled: for gradients, output errors and images. The blocks are ResNets and transformers; an
interpolation along the channels stands for a removed ResNet. `launch.prune` and `launch.train` take a criterion and a
size as student: the blocks with the lowest scores go until at most so many parameters (`taylor:482M`) or multiply-adds
(`taylor:217G`) are left.

The workdir gets `blocks.json`: the scores, each block's parameters, multiply-adds and widths, the rank correlation of
each two criteria with its 95% interval, and the scores of images; `blocks.html`, a page of all that; `images/`, a few
of each removal; with `skip_unusable` also `skipped.csv`. The same command continues an interrupted analysis, also with
more criteria. Prints the blocks with their rank by each criterion, those on top that go first by the last one. A
student takes the scores of any teacher with the same blocks: give it its own teacher's.
"""

from pathlib import Path

from bksdm_jax.analysis.config import AnalyseConfig, require_analysis
from launch.command import run


def main(config: AnalyseConfig, workdir: Path) -> None:
    """Measures the blocks and prints a table."""
    from bksdm_jax.analysis.analyse import analyse
    from bksdm_jax.analysis.table import block_lines

    path = analyse(config, workdir)
    print("\n".join(block_lines(path)))
    print(f"\n{path}")


if __name__ == "__main__":
    run(__doc__, AnalyseConfig, main, require_analysis)
