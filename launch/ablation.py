"""The paper's ablation (Table 4) on the small world that comes with the package.

  python -m launch.ablation --config=configs/ablation.py --workdir=runs/ablation

Six students: random or the teacher's weights at the start, times task loss, output and feature distillation. Writes
`report.html` and `report.json`. The same command again continues where it was.
"""

from pathlib import Path

from launch.command import keep_compiled, quiet_libraries, run, tell

quiet_libraries()

from bksdm_jax.experiments.comparison import ComparisonConfig, compare_students  # noqa: E402
from bksdm_jax.experiments.table import EXPERIMENTS  # noqa: E402


def main(config: ComparisonConfig, workdir: Path) -> None:
    """Runs the ablation and says where the report is."""
    keep_compiled(workdir)
    tell(compare_students(config, EXPERIMENTS["ablation"], workdir), workdir)


if __name__ == "__main__":
    run(ComparisonConfig, main)
