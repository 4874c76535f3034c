"""The whole of it on the small world that comes with the package, in minutes on two CPU cores.

  python -m launch.demo --config=configs/demo.py --workdir=runs/demo

Prunes the shapes teacher, trains the student with and without distillation, samples all of them from the same noise,
scores them, and writes `report.html` and `report.json`. The same command again continues where it was.
"""

from pathlib import Path

from launch.command import keep_compiled, quiet_libraries, run, tell

quiet_libraries()

from bksdm_jax.experiments.comparison import ComparisonConfig, compare_students  # noqa: E402
from bksdm_jax.experiments.table import EXPERIMENTS  # noqa: E402


def main(config: ComparisonConfig, workdir: Path) -> None:
    """Runs the demo and says where the report is."""
    keep_compiled(workdir)
    tell(compare_students(config, EXPERIMENTS["demo"], workdir), workdir)


if __name__ == "__main__":
    run(ComparisonConfig, main)
