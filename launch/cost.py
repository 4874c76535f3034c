"""Counts parameters and multiply-adds of a pipeline and its students, from shapes alone; takes seconds.

  python -m launch.cost --config=configs/cost.py:v1
  python -m launch.cost --config=configs/cost.py --config.pipeline=DIR --config.students=bk_small,no_mid

Prints the counts of text encoder, U-Net (one call), VAE decoder and one whole image, for the teacher and each student,
with the student's share of the teacher's. THOP's rules, those of the paper's Table 2, count convolutions, linear layers
and 4 per element of a LayerNorm; "full" counts the products inside attention too, but no norms.
`--config.latency=True` times the networks on this machine's device.
"""

from bksdm_jax.perf.config import CostConfig, require_cost
from launch.command import run_without_workdir


def main(config: CostConfig) -> None:
    """Prints the report."""
    from bksdm_jax.perf.cost_report import cost_report

    print(cost_report(config))


if __name__ == "__main__":
    run_without_workdir(__doc__, CostConfig, main, require_cost)
