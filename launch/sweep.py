"""Several distillations, one after the other, in one table and plot.

  python -m launch.sweep --config=configs/sweep.py:shapes,rates --workdir=runs/rates

An interrupted sweep continues with the same command; a run that fails is told in the table, and the others are made;
the status is then 1. On several hosts the same command runs on each, as that of `launch.train`.
The workdir then holds a folder for each run, as `launch.train` makes it, `sweep.csv` and `sweep.png`.
"""

import ast
import dataclasses
import re
import sys
from pathlib import Path

from launch.command import quiet_libraries, run, tell, to_dataclass

quiet_libraries()

from ml_collections import config_dict  # noqa: E402

from bksdm_jax.base.errors import InputError, nearest  # noqa: E402
from bksdm_jax.experiments.sweep import read_sweep, sweep  # noqa: E402
from bksdm_jax.tasks.distill.config import DistillConfig  # noqa: E402
from configs.distill import get_config  # noqa: E402


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Runs as variants of `configs/distill.py`, and settings that all of them share, `KEY=VALUE` each."""

    runs: tuple[str, ...]
    settings: tuple[str, ...] = ()


def read_run(variants: str, settings: tuple[str, ...]) -> DistillConfig:
    """The run that variants and settings mean; raises `InputError` if they mean none."""
    try:
        config = get_config(variants)
    except ValueError as error:
        raise InputError(f"runs: {variants!r}: {error}") from error
    for entry in settings:
        _set(config, entry)
    for key in ("teacher", "data"):
        if not config[key]:
            raise InputError(f"runs: {variants}: no {key}; give --config.settings=\"('{key}=DIR',)\"")
    return to_dataclass(DistillConfig, config)


def _set(config: config_dict.ConfigDict, entry: str) -> None:
    path, mark, text = entry.partition("=")
    *groups, key = path.split(".")
    inner = config
    for group in groups:
        inner = inner.get(group) if isinstance(inner, config_dict.ConfigDict) else None
    if not mark or not isinstance(inner, config_dict.ConfigDict) or key not in inner:
        known = list(config) if inner is None else list(inner)
        raise InputError(f"settings: {entry!r}; expected KEY=VALUE of a run{nearest(key, known)}")
    kind = type(inner[key])
    read = {bool: lambda text: {"true": True, "false": False}[text.lower()], tuple: _tuple}.get(kind, kind)
    try:
        inner[key] = read(text)
    except (KeyError, ValueError, TypeError, SyntaxError) as error:
        raise InputError(f"settings: {entry!r}; expected {kind.__name__}") from error


def _tuple(text: str) -> tuple[object, ...]:
    value = ast.literal_eval(text)
    if not isinstance(value, tuple):
        raise TypeError(text)
    return value


def main(config: SweepConfig, workdir: Path) -> None:
    """Makes the runs and prints the table."""
    runs = {re.sub(r"[^\w.-]+", "_", name): read_run(name, config.settings) for name in config.runs}
    made = sweep(runs, workdir)
    if made is not None:
        rows = read_sweep(made)
        widths = {key: max(len(key), *(len(row[key]) for row in rows)) for key in rows[0]}
        for row in [{key: key for key in widths}, *rows]:
            print("  ".join(f"{row[key]:{width}}" for key, width in widths.items()).rstrip())
        failed = [row["run"] for row in rows if row["status"] != "done"]
        if failed:
            sys.exit(f"error: {len(failed)} of {len(rows)} runs aren't done ({', '.join(failed)}); {made} says why")
    tell(made, workdir)


if __name__ == "__main__":
    run(SweepConfig, main, distributed=True)
