"""The whole of it on the small world that comes with the package, in minutes on two CPU cores.

  python -m launch.demo --config=configs/demo.py --workdir=runs/demo

Prunes the shapes teacher, trains the student with and without distillation, samples all of them from the same noise,
scores them, and writes `report.html` and `report.json`. The same command again continues where it was.
"""

from launch.experiment import run_experiment

if __name__ == "__main__":
    run_experiment("demo")
