"""The binaries, as `python -m launch.VERB` runs them, but in this process: many calls for one interpreter.

What they compile is kept from call to call by JAX's compilation cache, which `tests.conftest` sets.
"""

import contextlib
import csv
import dataclasses
import io
import os
import runpy
import subprocess
import sys
import traceback
from collections.abc import Iterator
from pathlib import Path
from unittest import mock

import jax
from absl import app, flags, logging

from bksdm_jax.base.distributed import ProcessConfig
from tests import tiny
from tests.conftest import QUICK_XLA, ROOT

VERBS = sorted(path.stem for path in (ROOT / "launch").glob("*.py") if "__main__" in path.read_text(encoding="utf-8"))
_FLAGS = {"config", "workdir", *(field.name for field in dataclasses.fields(ProcessConfig))}


@dataclasses.dataclass(frozen=True)
class Ended:
    """What a program leaves: its status, and what it wrote to its standard output and error."""

    status: int
    output: str
    errors: str


def settings(config: str, workdir: Path | None = None, **values: object) -> list[str]:
    """Flags: `a__b=1` is `--config.a.b=1`."""
    given = [f"--config.{key.replace('__', '.')}={value}" for key, value in values.items()]
    return [f"--config=configs/{config}", *given, *([f"--workdir={workdir}"] if workdir else [])]


def micro_run(teacher: Path, data: Path, workdir: Path, **values: object) -> list[str]:
    """Flags of a distillation of seconds, two stages at 16 pixels; all of them share one compiled update."""
    small = {"student": tiny.MICRO_STUDENT, "resolution": 16, "batch_size": 2, "sheets__steps": 0}
    rate = {"optimizer__learning_rate": 3e-3, "checkpoint_every": 0}  # a checkpoint takes longer than ten updates
    return settings("distill.py:v1,runlocal", workdir, teacher=teacher, data=data, **small | rate | values)


def run(verb: str, arguments: list[str]) -> Ended:
    """Runs a binary to its end on one device, from the folder that has `configs/`."""
    output, errors = io.StringIO(), io.StringIO()
    status = 0
    with (
        _as_first_program(),
        mock.patch.object(jax, "devices", lambda devices=jax.devices: devices()[:1]),
        contextlib.chdir(ROOT),
        mock.patch.object(sys, "argv", [verb, *arguments]),
        mock.patch.object(logging.get_absl_handler().python_handler, "stream", errors),
        contextlib.redirect_stdout(output),
        contextlib.redirect_stderr(errors),
    ):
        try:
            runpy.run_module(f"launch.{verb}", run_name="__main__")
        except SystemExit as end:  # as the interpreter takes it
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
        except Exception:
            status = 1
            traceback.print_exc()
    return Ended(status, output.getvalue(), errors.getvalue())


def start(verb: str, arguments: list[str]) -> subprocess.Popen[str]:
    """The program itself, in a process of its own; one device, and otherwise compiled as in this one."""
    return subprocess.Popen(
        [sys.executable, "-m", f"launch.{verb}", *arguments],
        cwd=ROOT,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "XLA_FLAGS": QUICK_XLA},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def succeed(verb: str, arguments: list[str]) -> str:
    """What a binary prints that ends well."""
    ended = run(verb, arguments)
    assert ended.status == 0, ended.output + ended.errors
    return ended.output


def fail(verb: str, arguments: list[str]) -> str:
    """The one line that a binary says for itself on its way out."""
    ended = run(verb, arguments)
    assert ended.status == 1, ended.output + ended.errors
    assert "Traceback" not in ended.errors, ended.errors
    lines = [line for line in ended.errors.splitlines() if line.startswith("error: ")]
    assert len(lines) == 1, ended.errors
    return lines[0]


def metrics(workdir: Path) -> list[dict[str, str]]:
    """The whole rows that `metrics.csv` holds so far."""
    path = workdir / "metrics.csv"
    if not path.exists():
        return []
    with path.open(newline="") as file:
        return [row for row in csv.DictReader(file) if None not in row.values()]


@contextlib.contextmanager
def _as_first_program() -> Iterator[None]:
    """The flags that a binary defines, and how it logs, go with it."""
    app.define_help_flags()
    verbosity = logging.get_verbosity()
    try:
        yield
    finally:
        for name in [name for name in flags.FLAGS if name.split(".")[0] in _FLAGS]:
            delattr(flags.FLAGS, name)
        logging.set_verbosity(verbosity)
