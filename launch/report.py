"""Puts scores beside each other and beside the paper's, in one HTML page.

  python -m launch.report --config=configs/report.py --config.scores="('runs/a_scores','runs/b_scores')" --workdir=DIR
  python -m launch.report --config=configs/report.py --config.scores="('runs/a_scores',)" --config.published=no \
    --workdir=DIR

`scores` are workdirs of `launch.score`. The workdir gets `report.html`, a self-contained page with the scores, figures
of quality over cost, the models' images beneath each other and how everything was measured, and its tables as `.csv`
files. The same command, or one with other settings, writes them again.
"""

from pathlib import Path

from bksdm_jax.reports.config import ReportConfig
from launch.command import run


def main(config: ReportConfig, workdir: Path) -> None:
    """Writes the page and prints its path."""
    from bksdm_jax.reports.score_page import report

    print(report(config, workdir))


if __name__ == "__main__":
    run(__doc__, ReportConfig, main)
