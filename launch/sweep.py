r"""Runs several distillations in sequence, with one table and plot.

  python -m launch.sweep --config=configs/sweep.py:shapes,rates --workdir=runs/rates
  python -m launch.sweep --config=configs/sweep.py:v2_base,ablation --config.settings="('teacher=DIR','data=DIR')" \
    --workdir=DIR
  python -m launch.sweep --config=configs/sweep.py:shapes,criteria --config.block_scores=DIR --workdir=DIR

The same command continues an interrupted sweep. A run that fails is reported in the table and the others still run; the
exit status is then 1. On several hosts, run the same command on each, as with `launch.train`.
The workdir gets `sweep.csv`, `sweep.png`, and for each run a folder as written by `launch.train`. With `block_scores`
it also gets `criteria.html`, `criteria.svg` and `criteria.json`: how far each criterion's scores of the removed blocks,
and the losses and scores right after pruning, rank the students as training does.
"""

import sys
from pathlib import Path

from launch.command import run, tell
from launch.runs import SweepConfig, require_runs


def main(config: SweepConfig, workdir: Path) -> None:
    """Executes the runs and prints the table."""
    from bksdm_jax.base.distributed import is_first
    from bksdm_jax.experiments.sweep import read_sweep, sweep

    runs = config.read()
    made = sweep(runs, workdir)
    if made is None:
        tell(made, workdir)
    elif is_first():
        rows = read_sweep(made)
        widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
        for row in [{key: key for key in widths}, *rows]:
            print("  ".join(f"{row[key]:{width}}" for key, width in widths.items()).rstrip())
        failed = [row["run"] for row in rows if row["run"] in runs and row["status"] != "done"]
        if failed:
            sys.exit(f"error: {len(failed)} of {len(runs)} runs failed ({', '.join(failed)}); see {made}")
        tell(made, workdir)


if __name__ == "__main__":
    run(__doc__, SweepConfig, main, require_runs, distributed=True)
