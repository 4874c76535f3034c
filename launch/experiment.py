"""Runs a named comparison of students; shared by `launch.demo` and `launch.ablation`."""

import functools
from pathlib import Path

from launch.command import keep_compiled, quiet_libraries, run, tell

quiet_libraries()

from bksdm_jax.experiments.comparison import compare_students
from bksdm_jax.experiments.config import ComparisonConfig
from bksdm_jax.experiments.table import EXPERIMENTS  # noqa: E402


def main(name: str, config: ComparisonConfig, workdir: Path) -> None:
    """Runs the experiment `name`, a key of `EXPERIMENTS`, and prints the path of its report."""
    keep_compiled(workdir)
    tell(compare_students(config, EXPERIMENTS[name], workdir), workdir)


def run_experiment(name: str) -> None:
    """Parses the flags and runs the experiment."""
    run(ComparisonConfig, functools.partial(main, name))
