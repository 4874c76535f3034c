"""What a pipeline and its students cost, from shapes alone: seconds on any machine, no weights.

  python -m launch.cost --config=configs/cost.py:v1
  python -m launch.cost --config=configs/cost.py --config.pipeline=DIR --config.students=bk_small,no_mid

Prints parameters and multiply-adds of text encoder, U-Net (one call), VAE decoder and one whole image, for the teacher
and each student, with what is left of the teacher's. THOP's rules are those of the paper's Table 2: convolutions,
linear layers, 4 per element of a LayerNorm. "full" counts the products inside attention too, and no norm.
`--config.latency=True` times the networks on this machine's device.
"""

from launch.command import quiet_libraries, run_without_workdir

quiet_libraries()

from bksdm_jax.perf.cost_report import CostConfig, cost_report  # noqa: E402


def main(config: CostConfig) -> None:
    """Counts and prints."""
    print(cost_report(config))


if __name__ == "__main__":
    run_without_workdir(CostConfig, main)
