"""Runs the programs on command lines in this process, which stays without JAX as long as they do.

`python -m tests.command_lines` takes a JSON list of [program, arguments] and prints what each left: its status, its
standard output and error, and the libraries that it was the first to import.
"""

import contextlib
import io
import json
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).parent.parent
SLOW = {"jax", "tensorflow", "torch", "flax", "transformers", "diffusers"}
"""Libraries that take seconds to import."""


class Left(NamedTuple):
    """What a program leaves."""

    status: int
    output: str
    errors: str
    imported: list[str]


def run_all(lines: list[tuple[str, list[str]]], folder: Path = ROOT) -> list[Left]:
    """Runs programs one after the other in a process of its own, begun in `folder`."""
    ended = subprocess.run(
        [sys.executable, "-m", "tests.command_lines"],
        input=json.dumps(lines),
        capture_output=True,
        text=True,
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PATH": "", "HOME": str(folder)},
        check=False,
    )
    assert ended.returncode == 0, ended.stderr
    return [Left(*one) for one in json.loads(ended.stdout)]


def _run(program: str, arguments: list[str]) -> tuple[Any, ...]:
    from absl import app, flags

    output, errors = io.StringIO(), io.StringIO()
    before, known, status = set(sys.modules), set(flags.FLAGS), 0
    sys.argv = [program, *arguments]
    app.define_help_flags()
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors):
        try:
            runpy.run_module(f"launch.{program}", run_name="__main__")
        except SystemExit as end:  # as the interpreter takes it
            status = end.code if isinstance(end.code, int) else int(end.code is not None)
            print(end.code if isinstance(end.code, str) else "", file=sys.stderr)
    for name in set(flags.FLAGS) - known:
        if name not in ("?", "help", "helpfull", "helpshort", "helpxml"):
            delattr(flags.FLAGS, name)
    return status, output.getvalue(), errors.getvalue(), sorted(SLOW & (set(sys.modules) - before))


if __name__ == "__main__":
    json.dump([_run(program, arguments) for program, arguments in json.load(sys.stdin)], sys.stdout)
