"""Samples and scores models at several guidance scales or numbers of steps, and draws the curves.

  python -m launch.tradeoff --config=configs/tradeoff.py:guidance --config.models="('DIR','DIR2')" \
    --config.prompts=FILE --config.metrics="('fid_pytorch_fid','clip_score')" --config.reference=DIR \
    --config.inception=FILE --workdir=DIR
  python -m launch.tradeoff --config=configs/tradeoff.py:shapes,guidance --config.prompts=FILE --workdir=DIR

The workdir gets `report.html`, a self-contained page with every score over the guidance scale and over the steps,
Frechet distances against CLIP scores with each point's guidance scale, and images; the same numbers as `curves.csv` and
`scores.csv`; and for each model and setting the images, as of `launch.sample`, with their scores, as of `launch.score`.
The same command continues an interrupted run, and one with more models or settings makes only what is missing.
"""

from pathlib import Path

from bksdm_jax.experiments.config import TradeoffConfig, require_tradeoff
from launch.command import run


def main(config: TradeoffConfig, workdir: Path) -> None:
    """Makes the curves and prints the page's path."""
    from bksdm_jax.experiments.tradeoff import tradeoff

    print(tradeoff(config, workdir))


if __name__ == "__main__":
    run(__doc__, TradeoffConfig, main, require_tradeoff)
