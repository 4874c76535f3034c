"""Scores images of the shapes world.

  python -m launch.score --config=configs/score.py --config.images=DIR --workdir=DIR

`images` is a folder as written by `launch.sample`: images and a `metadata.csv` (`file_name,text`) with captions of the
shapes world. Prints the scores and writes them to `scores.json` in the workdir.
"""

from pathlib import Path

from launch.command import quiet_libraries, run

quiet_libraries()

from bksdm_jax.metrics.score import ScoreConfig, score, score_table  # noqa: E402


def main(config: ScoreConfig, workdir: Path) -> None:
    """Scores the images and prints the table."""
    print(score_table(score(config, workdir)))


if __name__ == "__main__":
    run(ScoreConfig, main)
