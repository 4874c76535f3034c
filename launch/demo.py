"""The whole of it on the small world that comes with the package, in minutes on two CPU cores.

  python -m launch.demo --config=configs/demo.py --workdir=runs/demo

Prunes the shapes teacher, trains the student with and without distillation, samples all of them from the same noise,
scores them, and writes `report.html` and `report.json`. The same command again continues where it was.
"""

import sys
from pathlib import Path

from launch.command import quiet_libraries, run

quiet_libraries()

from bksdm_jax.experiments.demo import DemoConfig, demo  # noqa: E402


def main(config: DemoConfig, workdir: Path) -> None:
    """Runs the demo and says where the report is."""
    page = demo(config, workdir)
    if page is None:
        sys.exit(f"interrupted; the same command continues in {workdir}")
    print(page)


if __name__ == "__main__":
    run(DemoConfig, main)
