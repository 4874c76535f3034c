"""Scores a folder of images.

  python -m launch.score --config=configs/score.py:bk_sdm --config.images=DIR --config.reference=DIR \
    --config.inception=FILE --workdir=DIR

`images` is a folder, or the workdir of `launch.sample`; captions are read from its `metadata.csv` (`file_name,text`).
`reference` is a folder of real images, or for Frechet distances a `.npz` file of statistics, as pytorch-fid's. Metrics
and weights: see `MetricsConfig` (bksdm_jax/metrics/config.py). Prints the scores with their intervals and writes them
to `scores.json` in the workdir, with hashes of images, weights and reference. The same command continues an interrupted
run. What is computed of a reference is kept in a cache and used again.
"""

from pathlib import Path

from launch.command import quiet_libraries, run

quiet_libraries()

from bksdm_jax.evaluation.config import ScoreConfig  # noqa: E402
from bksdm_jax.evaluation.score import score, score_table  # noqa: E402


def main(config: ScoreConfig, workdir: Path) -> None:
    """Scores the images and prints the table."""
    print(score_table(score(config, workdir)))


if __name__ == "__main__":
    run(ScoreConfig, main)
