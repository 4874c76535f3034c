"""The runs of a sweep: variants of `configs/distill.py` with shared settings."""

import dataclasses
import hashlib
import re

from bksdm_jax.base.errors import InputError, shown
from bksdm_jax.tasks.distill.config import DistillConfig, require_settings
from configs.distill import get_config
from launch.names import unknown_setting
from launch.parsing import explain, override
from launch.values import to_dataclass

_LONGEST = 100  # characters of a folder's name


@dataclasses.dataclass(frozen=True)
class SweepConfig:
    """Several distillations.

    Attributes:
        runs: variants of `configs/distill.py`, one run each, with settings of its own after spaces, such as
            `shapes student=taylor:3.84M seed=1`; they win over shared ones.
        settings: shared settings, each `KEY=VALUE` as in `--config.KEY=VALUE` of `launch.train`.
        block_scores: for students such as `taylor:482M`: the workdir of `launch.analyse`, or its `blocks.json`.
    """

    runs: tuple[str, ...]
    settings: tuple[str, ...] = ()
    block_scores: str = ""

    def read(self) -> dict[str, DistillConfig]:
        """The runs by the names of their folders.

        Raises `InputError` for invalid variants or settings, or two runs with the same name.
        """
        scores = (f"block_scores={self.block_scores}",) if self.block_scores else ()
        found: dict[str, tuple[str, DistillConfig]] = {}
        for run in self.runs:
            name = _folder(run)
            if name in found:
                raise InputError(f"runs: {shown(found[name][0])} and {shown(run)} have the same folder, {name}")
            found[name] = run, read_run(run, (*scores, *self.settings))
        return {name: config for name, (_, config) in found.items()}


def _folder(run: str) -> str:
    """The name of a run's folder; long ones, such as lists of blocks, end with a hash."""
    name = re.sub(r"[^\w.-]+", "_", run)
    return name if len(name) <= _LONGEST else f"{name[:_LONGEST]}_{hashlib.sha256(run.encode()).hexdigest()[:8]}"


def read_run(run: str, settings: tuple[str, ...]) -> DistillConfig:
    """The config of a run; its own settings win over the shared ones.

    Raises `InputError` for invalid variants or settings.
    """
    variants, *own = run.split() or [""]
    try:
        config = get_config(variants)
    except ValueError as error:
        raise InputError(f"runs: {variants!r}: {error}") from error
    for source, entry in (*(("settings", entry) for entry in settings), *(("runs", entry) for entry in own)):
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
