"""Prunes, distils, samples and scores on the bundled shapes world, in minutes on two CPU cores.

  python -m launch.demo --config=configs/demo.py --workdir=runs/demo
  python -m launch.demo --config=configs/demo.py:short --workdir=runs/short

Prunes the shapes teacher, trains the student with and without distillation, samples from all models with the same
noise, scores the images, and writes `report.html` and `report.json`. The same command continues an interrupted run.
"""

from launch.experiment import run_experiment

if __name__ == "__main__":
    run_experiment(__doc__, "demo")
