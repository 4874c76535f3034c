"""The runs of a sweep: variants of `configs/distill.py` with shared settings."""

import dataclasses

from absl import flags
from ml_collections import config_dict, config_flags

from bksdm_jax.base.errors import InputError
from bksdm_jax.tasks.distill.config import DistillConfig
from configs.distill import get_config
from launch.command import explain, to_dataclass


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
        _override(config, entry)
    for key in ("teacher", "data"):
        if not config[key]:
            raise InputError(f"runs: {variants}: no {key}; give --config.settings=\"('{key}=DIR',)\"")
    return to_dataclass(DistillConfig, config)


def _override(config: config_dict.ConfigDict, entry: str) -> None:
    """Sets one key as the flag `--config.KEY=VALUE` does.

    `ConfigDict.update_from_flattened_dict` takes values, not text, and would add an unknown key to the config.
    """
    key, mark, _ = entry.partition("=")
    if not key or not mark:
        raise InputError(f"settings: {entry!r}; expected KEY=VALUE of a run")
    argv, values = ["settings", f"--config.{entry}"], flags.FlagValues()
    try:
        config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
        values(argv)
    except Exception as error:  # as on the command line, overrides raise many types
        raise InputError(f"settings: {entry!r}: {explain(error)}") from error
