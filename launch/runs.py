"""The runs of a sweep: variants of `configs/distill.py` with shared settings."""

import dataclasses
import re

from bksdm_jax.base.errors import InputError
from bksdm_jax.tasks.distill.config import DistillConfig, require_settings
from configs.distill import get_config
from launch.names import unknown_setting
from launch.parsing import explain, override
from launch.values import to_dataclass


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Several distillations.

    Attributes:
        runs: variants of `configs/distill.py`, one run each, with settings of its own after spaces, such as
            `shapes student=taylor:3.84M`.
        settings: shared settings, each `KEY=VALUE` as in `--config.KEY=VALUE` of `launch.train`.
        block_scores: for students such as `taylor:482M`: the workdir of `launch.analyse`, or its `blocks.json`.
    """

    runs: tuple[str, ...]
    settings: tuple[str, ...] = ()
    block_scores: str = ""

    def read(self) -> dict[str, DistillConfig]:
        """The runs by the names of their folders; raises `InputError` for invalid variants or settings."""
        scores = (f"block_scores={self.block_scores}",) if self.block_scores else ()
        return {re.sub(r"[^\w.-]+", "_", run): read_run(run, (*scores, *self.settings)) for run in self.runs}


def read_run(run: str, settings: tuple[str, ...]) -> DistillConfig:
    """The config of a run, whose own settings come before the shared ones.

    Raises `InputError` for invalid variants or settings.
    """
    variants, *own = run.split() or [""]
    try:
        config = get_config(variants)
    except ValueError as error:
        raise InputError(f"runs: {variants!r}: {error}") from error
    for source, entry in (*(("runs", entry) for entry in own), *(("settings", entry) for entry in settings)):
        key, mark, _ = entry.partition("=")
        if not key or not mark:
            raise InputError(f"{source}: {entry!r}; expected KEY=VALUE of a run")
        if problem := unknown_setting(key, DistillConfig):
            raise InputError(f"{source}: {entry!r}: {problem}")
        try:
            override(config, entry)
        except Exception as error:  # as on the command line, overrides raise many types
            raise InputError(f"{source}: {entry!r}: {explain(error)}") from error
    for key in ("teacher", "data"):
        if not config[key]:
            raise InputError(f"runs: {run}: no {key}; give --config.settings=\"('{key}=DIR',)\"")
    return to_dataclass(DistillConfig, config)


def require_runs(config: SweepConfig) -> None:
    """Raises `InputError` for variants or settings of a run that can't be used; reads no files."""
    for run in config.read().values():
        require_settings(run)
