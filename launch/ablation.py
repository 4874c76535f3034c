"""The paper's ablation (Table 4) on the small world that comes with the package.

  python -m launch.ablation --config=configs/ablation.py --workdir=runs/ablation

Six students: random or the teacher's weights at the start, times task loss, output and feature distillation. Writes
`report.html` and `report.json`. The same command again continues where it was.
"""

from launch.experiment import run_experiment

if __name__ == "__main__":
    run_experiment("ablation")
