"""The runs of a sweep: variants of `configs/distill.py` with shared settings."""

import dataclasses

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
        runs: variants of `configs/distill.py`, one run each.
        settings: shared settings, each `KEY=VALUE` as in `--config.KEY=VALUE` of `launch.train`.
    """

    runs: tuple[str, ...]
    settings: tuple[str, ...] = ()


def read_run(variants: str, settings: tuple[str, ...]) -> DistillConfig:
    """The config of a run; raises `InputError` for invalid variants or settings."""
    try:
        config = get_config(variants)
    except ValueError as error:
        raise InputError(f"runs: {variants!r}: {error}") from error
    for entry in settings:
        key, mark, _ = entry.partition("=")
        if not key or not mark:
            raise InputError(f"settings: {entry!r}; expected KEY=VALUE of a run")
        if problem := unknown_setting(key, DistillConfig):
            raise InputError(f"settings: {entry!r}: {problem}")
        try:
            override(config, entry)
        except Exception as error:  # as on the command line, overrides raise many types
            raise InputError(f"settings: {entry!r}: {explain(error)}") from error
    for key in ("teacher", "data"):
        if not config[key]:
            raise InputError(f"runs: {variants}: no {key}; give --config.settings=\"('{key}=DIR',)\"")
    return to_dataclass(DistillConfig, config)


def require_runs(config: SweepConfig) -> None:
    """Raises `InputError` for variants or settings of a run that can't be used; reads no files."""
    for variants in config.runs:
        require_settings(read_run(variants, config.settings))
