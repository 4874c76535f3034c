"""The paper's ablation (Table 4) on the small world that comes with the package.

  python -m launch.ablation --config=configs/ablation.py --workdir=runs/ablation

Six students: random or the teacher's weights at the start, times task loss, output and feature distillation. Writes
`report.html` and `report.json`. The same command again continues where it was.
"""

import sys
from pathlib import Path

from launch.command import quiet_libraries, run

quiet_libraries()

from bksdm_jax.experiments.ablation import AblationConfig, ablation  # noqa: E402


def main(config: AblationConfig, workdir: Path) -> None:
    """Runs the ablation and says where the report is."""
    page = ablation(config, workdir)
    if page is None:
        sys.exit(f"interrupted; the same command continues in {workdir}")
    print(page)


if __name__ == "__main__":
    run(AblationConfig, main)
