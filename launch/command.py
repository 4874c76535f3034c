"""Shared by all programs: from flags to a frozen dataclass to one call; user errors become one line.

Settings are parsed and checked before a program imports JAX, which takes seconds: `call` imports what it needs.
"""

import dataclasses
import errno
import os
import sys
import threading
import time
from collections.abc import Callable, Collection
from functools import partial
from pathlib import Path
from typing import Any

from absl import app, flags, logging
from ml_collections import config_flags

from bksdm_jax.base.compile_cache import keep_compiled
from bksdm_jax.base.errors import InputError
from bksdm_jax.base.exits import FAILED, RESTART
from bksdm_jax.base.paths import local_path
from bksdm_jax.base.peers import ending_together
from bksdm_jax.base.processes import NONE, ProcessConfig, require_processes
from bksdm_jax.base.signals import Interrupted, handled, interrupted, leaving
from launch.manual import FLAGS, explanations
from launch.names import ROOT, own_config
from launch.parsing import Classes, class_of, parse
from launch.values import to_dataclass

_AT_MOST = 20.0  # seconds from a program's error to its end
_ENVIRONMENT = {  # libraries' settings, unless the user has set them
    # Programs for CPUs compile a tenth faster without unrolled loops, and run as fast.
    "XLA_FLAGS": "--xla_backend_extra_options=xla_cpu_disable_loop_unrolling",
    # Quiet starts:
    "TF_CPP_MIN_LOG_LEVEL": "3",
    "TF_ENABLE_ONEDNN_OPTS": "0",  # TensorFlow, which only writes events and reads files, would announce it
    "GRPC_VERBOSITY": "ERROR",
    "TPU_STDERR_LOG_LEVEL": "3",
    "TPU_MIN_LOG_LEVEL": "3",
    "TRANSFORMERS_VERBOSITY": "error",
    "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1",
    "DIFFUSERS_VERBOSITY": "error",
}


def run(
    manual: str | None,
    config_class: Classes,
    call: Callable[[Any, Path], None],
    check: Callable[[Any], object] | None = None,
    distributed: bool = False,
    left: Callable[[Any, Path, int], tuple[int, str]] = lambda config, workdir, number: interrupted(number),
) -> None:
    """Parses `--config` and `--workdir`, and calls `call(config, workdir)`.

    Args:
        manual: the program's docstring, for `--help`; its examples name the program and its config file.
        config_class: a frozen dataclass, possibly nested; its fields are the config file's keys. Or several, by the
            `task` of the config file.
        call: does the work. An `InputError` or a full disk ends the program with `error: ...` and status 1.
        check: raises `InputError` for settings that can't be used; must not need JAX.
        distributed: allow several processes; adds the fields of `ProcessConfig` as flags. One that fails or is lost
            ends the others; see `peers` for messages and statuses.
        left: (config, workdir, signal) -> exit status and last line, until `call` says otherwise.
    """
    workdir = flags.DEFINE_string("workdir", None, FLAGS["workdir"])
    fields = dataclasses.fields(ProcessConfig) if distributed else ()
    own = {"workdir": FLAGS["workdir"]} | (explanations(ProcessConfig) if distributed else {})
    for field in fields:
        define = {str: flags.DEFINE_string, int: flags.DEFINE_integer}[type(field.default)]
        define(field.name, field.default, own[field.name])

    def checked(config: Any) -> None:
        if workdir.value is None:
            raise InputError("--workdir: missing; give --workdir=DIR")
        if "://" in workdir.value:
            raise InputError(f"--workdir: {workdir.value!r}; expected a local or mounted folder")
        local_path("--workdir", workdir.value)
        if distributed:
            require_processes(_processes())
        if check:
            check(config)

    def call_with_workdir(config: Any) -> None:
        folder = local_path("--workdir", workdir.value)
        with leaving(lambda number: left(config, folder, number)):
            if distributed:
                _connect(_processes())
            call(config, folder)

    with ending_together():
        run_without_workdir(manual, config_class, call_with_workdir, checked, own=own)


def _processes() -> ProcessConfig:
    return ProcessConfig(**{field.name: flags.FLAGS[field.name].value for field in dataclasses.fields(ProcessConfig)})


def _connect(config: ProcessConfig) -> None:
    from bksdm_jax.base.distributed import connect, is_first  # imports JAX

    connect(config)
    if config.distributed != NONE and not is_first():
        logging.set_verbosity(logging.WARNING)  # the first process logs for all


def run_without_workdir(
    manual: str | None,
    config_class: Classes,
    call: Callable[[Any], None],
    check: Callable[[Any], object] | None = None,
    may_be_empty: Collection[str] = (),
    own: dict[str, str] | None = None,
    cached: bool = True,
) -> None:
    """Parses `--config` and calls `call(config)`, for programs without output files; otherwise like `run`.

    `may_be_empty` are keys that the class requires but this program doesn't; `own` are flags beside `config` and
    `help`, with their explanations. `cached`: whether compiled programs may come from an earlier run.
    """
    manual = manual or ""
    known = {"config": "the file of settings, PATH or PATH:VARIANT,VARIANT"} | (own or {}) | {"help": FLAGS["help"]}
    config = config_flags.DEFINE_config_file("config", None, known["config"])

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise InputError(f"{argv[1]!r}: unexpected argument; settings are --config.KEY=VALUE")
        if config.value is None:
            raise InputError(f"--config: missing; give --config={own_config(manual)}")
        logging.set_verbosity(logging.INFO)
        logging.get_absl_handler().addFilter(_worth_reading)
        settings = to_dataclass(class_of(config_class, config.value), config.value, may_be_empty=may_be_empty)
        if check:
            check(settings)
        path = config_flags.get_config_filename(flags.FLAGS["config"]).partition(":")[0]
        logging.info("settings from %s", Path(path).resolve())
        for name, value in _ENVIRONMENT.items():
            os.environ.setdefault(name, value)
        if cached and not ("distributed" in flags.FLAGS and flags.FLAGS["distributed"].value != NONE):
            keep_compiled()
        call(settings)

    ended: Interrupted | None = None
    try:
        with handled():
            app.run(main, flags_parser=partial(parse, manual=manual, classes=config_class, own=known))
    except Interrupted as error:
        ended = error
    except InputError as error:
        _end_soon()
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        _end_soon()
        path = error.filename or (flags.FLAGS["workdir"].value if "workdir" in flags.FLAGS else "writing")
        sys.exit(f"error: {path}: no space left on the disk; free some space and run the command again")
    if ended:
        print(ended.line, file=sys.stderr)
        sys.exit(ended.status)


def tell(made: Path | None, workdir: Path) -> None:
    """Prints the path of the result; None (interrupted) ends the program with `RESTART`."""
    if made is None:
        raise Interrupted(RESTART, f"interrupted; the same command continues in {workdir}")
    print(made)


def _end_soon() -> None:
    """Has a failed program end although threads of a library still run: Orbax's wait minutes for a lost folder."""

    def end() -> None:
        threading.main_thread().join(_AT_MOST)
        if not threading.main_thread().is_alive():  # the interpreter is shutting down, and waits for threads
            time.sleep(_AT_MOST)
            os._exit(FAILED)

    threading.Thread(target=end, daemon=True).start()


def _worth_reading(record: logging.logging.LogRecord) -> bool:
    """Whether a record is a warning, or comes from this package; Orbax logs every file, and stacks of errors."""
    folders = tuple(f"{ROOT / name}{os.sep}" for name in ("bksdm_jax", "launch"))
    others = record.levelno >= logging.logging.WARNING and f"{os.sep}orbax{os.sep}" not in record.pathname
    return others or record.pathname.startswith(folders)
