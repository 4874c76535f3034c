"""Runs the paper's ablation (Table 4) on the bundled shapes world.

  python -m launch.ablation --config=configs/ablation.py --workdir=runs/ablation
  python -m launch.ablation --config=configs/ablation.py --config.steps=300 --workdir=runs/short_ablation

Trains six students: random or the teacher's initial weights, each with the task loss alone, with output distillation,
and with output and feature distillation. Writes `report.html` and `report.json`. The same command continues an
interrupted run.
"""

from launch.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(__doc__, "ablation")
