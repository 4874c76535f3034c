"""Scores a folder of images.

  python -m launch.score --config=configs/score.py:bk_sdm --config.images=DIR --config.reference=DIR \
    --config.inception=FILE --workdir=DIR
  python -m launch.score --config=configs/score.py:shapes --config.images=DIR --workdir=DIR

`images` is a folder, or the workdir of `launch.sample`; captions are read from its `metadata.csv` (`file_name,text`).
`reference` is a folder of real images, or for Frechet distances a `.npz` file of statistics, as pytorch-fid's. Prints
the scores with their intervals and writes them to `scores.json` in the workdir, with hashes of images, weights and
reference. The same command continues an interrupted run. What is computed of a reference is kept in a cache and used
again.
"""

from pathlib import Path

from bksdm_jax.evaluation.config import ScoreConfig, require_score_settings
from launch.command import run


def main(config: ScoreConfig, workdir: Path) -> None:
    """Scores the images and prints the table."""
    from bksdm_jax.evaluation.score import score, score_table

    print(score_table(score(config, workdir)))


if __name__ == "__main__":
    run(__doc__, ScoreConfig, main, require_score_settings)
