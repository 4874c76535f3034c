"""Runs a named comparison of students; shared by `launch.demo` and `launch.ablation`."""

import functools
from pathlib import Path

from bksdm_jax.experiments.config import ComparisonConfig, require_comparison
from launch.command import run, tell


def main(name: str, config: ComparisonConfig, workdir: Path) -> None:
    """Runs the experiment `name`, a key of `EXPERIMENTS`, and prints the path of its report."""
    from bksdm_jax.experiments.comparison import compare_students
    from bksdm_jax.experiments.table import EXPERIMENTS

    tell(compare_students(config, EXPERIMENTS[name], workdir), workdir)


def run_experiment(manual: str | None, name: str) -> None:
    """Parses the flags and runs the experiment; `manual` is the program's docstring."""
    run(manual, ComparisonConfig, functools.partial(main, name), require_comparison)
