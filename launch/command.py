"""Shared by all binaries: from flags to a frozen dataclass to one call; user errors become one line."""

import dataclasses
import errno
import os
import re
import sys
import typing
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any

import clu
import jax
from absl import app, flags, logging
from ml_collections import config_dict, config_flags

import bksdm_jax
from bksdm_jax.base.distributed import connect, is_first
from bksdm_jax.base.errors import InputError, nearest
from bksdm_jax.base.paths import local_path
from bksdm_jax.base.processes import ProcessConfig
from bksdm_jax.base.workdir import COMPILED


def run(config_class: type, call: Callable[[Any, Path], None], distributed: bool = False) -> None:
    """Parses `--config` and `--workdir`, and calls `call(config, workdir)`.

    Args:
        config_class: a frozen dataclass, possibly nested; its fields are the config file's keys.
        call: does the work. An `InputError` or a full disk ends the program with `error: ...` and status 1.
        distributed: allow several processes; adds the fields of `ProcessConfig` as flags.
    """
    workdir = flags.DEFINE_string("workdir", None, "the folder for all output")
    fields = dataclasses.fields(ProcessConfig) if distributed else ()
    for field in fields:
        define = {str: flags.DEFINE_string, int: flags.DEFINE_integer}[type(field.default)]
        define(field.name, field.default, f"see {ProcessConfig.__module__}.ProcessConfig")

    def call_with_workdir(config: Any) -> None:
        if workdir.value is None:
            raise InputError("--workdir: missing; give --workdir=DIR")
        if "://" in workdir.value:
            raise InputError(f"--workdir: {workdir.value!r}; expected a local or mounted folder")
        if distributed:
            connect(ProcessConfig(**{field.name: flags.FLAGS[field.name].value for field in fields}))
            if not is_first():
                logging.set_verbosity(logging.WARNING)  # the first process logs for all
        call(config, local_path("--workdir", workdir.value))

    run_without_workdir(config_class, call_with_workdir)


def run_without_workdir(config_class: type, call: Callable[[Any], None], may_be_empty: Collection[str] = ()) -> None:
    """Parses `--config` and calls `call(config)`, for programs without output files; otherwise like `run`.

    `may_be_empty` are keys that the class requires but this program doesn't.
    """
    config = config_flags.DEFINE_config_file("config", None, "configs/NAME.py[:variant,variant]")

    def main(argv: list[str]) -> None:
        if len(argv) > 1:
            raise InputError(f"{argv[1]!r}: unexpected argument; settings are --config.KEY=VALUE")
        if config.value is None:
            raise InputError("--config: missing; give --config=configs/NAME.py")
        path = Path(config_flags.get_config_filename(flags.FLAGS["config"]).split(":")[0])
        if not path.is_file():
            raise InputError(f"--config: no such file {path}; run from the folder that contains configs/")
        logging.set_verbosity(logging.INFO)
        logging.get_absl_handler().addFilter(_worth_reading)
        call(to_dataclass(config_class, config.value, may_be_empty=may_be_empty))

    try:
        app.run(main, flags_parser=_parse)
    except InputError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        path = error.filename or (flags.FLAGS["workdir"].value if "workdir" in flags.FLAGS else "writing")
        sys.exit(f"error: {path}: no space left on the disk; free some space and run the command again")
    except KeyboardInterrupt:
        sys.exit("interrupted")


def to_dataclass(
    cls: type, config: config_dict.ConfigDict, prefix: str = "", may_be_empty: Collection[str] = ()
) -> Any:
    """Converts a ConfigDict, possibly nested, to the frozen dataclass `cls`.

    Required keys must not be empty, except those in `may_be_empty`.

    Raises:
        InputError: an unknown key, a required one that is missing or empty, or a value of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    types = typing.get_type_hints(cls)
    for key in config:
        if key not in fields:
            raise InputError(f"config.{prefix}{key}: no such key{nearest(key, fields)}; known: {', '.join(fields)}")
    values = {}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in config:
            if required:
                raise InputError(f"config.{prefix}{name}: missing; give --config.{prefix}{name}=...")
            continue
        value, wanted = config[name], types[name]
        if dataclasses.is_dataclass(wanted):
            values[name] = to_dataclass(wanted, value, f"{prefix}{name}.")
            continue
        if required and name not in may_be_empty and value in ("", None):
            raise InputError(f"config.{prefix}{name}: empty; give --config.{prefix}{name}=...")
        values[name] = _checked(wanted, value, f"config.{prefix}{name}")
    return cls(**values)


def _checked(wanted: Any, value: Any, key: str) -> Any:
    origin = typing.get_origin(wanted)
    if origin is tuple and isinstance(value, (list, tuple)):
        return tuple(value)
    if wanted is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    kind = origin or wanted
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{key}: {value!r}; expected {kind.__name__}")
    return value


def _parse(argv: list[str]) -> list[str]:
    """absl's parsing, with errors as one line."""
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        own = {"config", "workdir", *(field.name for field in dataclasses.fields(ProcessConfig))}
        known = [key for key in flags.FLAGS if key.startswith("config.") or key in own]
        raise InputError(f"--{error.flagname}: no such flag{nearest(error.flagname, known)}") from error
    except Exception as error:  # config files and overrides raise many types
        given = next((arg for arg in argv if arg.startswith("--config")), "--config")
        source = error.args[0].split(":")[0] if isinstance(error, flags.IllegalFlagValueError) else given
        raise InputError(f"{source.removeprefix('flag ')}: {explain(error)}") from error


def explain(error: BaseException) -> str:
    """The root cause of a parsing error of ml_collections or absl, in one line."""
    root, hint = error, ""
    while cause := root.__cause__ or root.__context__:
        if isinstance(cause, SyntaxError) and cause.filename == "<unknown>":
            break  # an unparsable value; ml_collections' message is clearer
        root = cause
        close = re.search(r'Did you mean "(\w+)"', str(root))
        hint = f" (did you mean {close[1]!r}?)" if close else hint
    parts = (root,) if isinstance(root, SyntaxError) else root.args if isinstance(root, ValueError) else root.args[-1:]
    text = " ".join(" ".join(map(str, parts or (root,))).split())
    if isinstance(root, TypeError) and "get_config()" in text:
        return "this config has no variants"
    return f"no key {text!r}{hint}" if isinstance(root, (AttributeError, KeyError)) else text


def tell(made: Path | None, workdir: Path) -> None:
    """Prints the path of the result; None (interrupted) ends the program with status 1."""
    if made is None:
        sys.exit(f"interrupted; the same command continues in {workdir}")
    print(made)


def keep_compiled(workdir: Path) -> None:
    """Caches compiled programs in `workdir`, unless JAX has a cache already, so that continuing recompiles nothing."""
    if not jax.config.jax_compilation_cache_dir:
        jax.config.update("jax_compilation_cache_dir", str((workdir / COMPILED).resolve()))


def _worth_reading(record: logging.logging.LogRecord) -> bool:
    """Whether a record is a warning, or comes from this package or clu's metric writer; Orbax logs every file."""
    folders = (str(Path(package.__file__).parent) + os.sep for package in (bksdm_jax, clu))
    return record.levelno >= logging.logging.WARNING or record.pathname.startswith(tuple(folders))


def quiet_libraries() -> None:
    """Silences libraries' start-up messages; call before importing them."""
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
