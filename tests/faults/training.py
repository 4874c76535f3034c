"""A run of `launch.train` whose processes come to harm, and what it leaves."""

import csv
import dataclasses
import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from jax.tree_util import keystr, tree_flatten_with_path

from bksdm_jax.base.checksums import NAME, damage
from bksdm_jax.base.paths import to_path
from tests.binaries import settings
from tests.conftest import QUICK_XLA, ROOT
from tests.faults.digest import digest

STUDENT = "mid_block,down_blocks.1,up_blocks.0"
SMALL = {"student": STUDENT, "resolution": 16, "sheets__steps": 0, "validation__every": 0, "checkpoint_every": 0}
TASK_ONLY = {"loss__output": 0, "loss__feature": 0, "optimizer__learning_rate": 3e-3}  # compiles in half the time
EPHEMERAL = {"images_per_second", "flops_per_second", "data_wait", "host_memory"}
LONG = 100_000
"""Steps that no victim lives to see."""


@dataclasses.dataclass(frozen=True)
class World:
    """What all runs train with."""

    teacher: Path
    data: Path


class Victim:
    """A process of a run; what it says goes to a file."""

    def __init__(self, arguments: list[str], log: Path, **environment: str) -> None:
        self.log = log
        quick = {"HF_HUB_OFFLINE": "1", "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
        with log.open("wb") as file:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "tests.faults.victim", *arguments],
                cwd=ROOT,
                env=os.environ | quick | environment,
                stdout=file,
                stderr=subprocess.STDOUT,
            )

    def said(self) -> str:
        """All that it has said so far."""
        return self.log.read_text(errors="replace")

    def until(self, condition: Callable[[], Any], seconds: float = 900) -> None:
        """Waits; the process may not end before."""
        deadline = time.monotonic() + seconds
        while not condition():
            assert self.process.poll() is None, (
                f"ended with {self.process.returncode} by itself:\n{self.said()[-3000:]}"
            )
            assert time.monotonic() < deadline, f"waited {seconds} s:\n{self.said()[-3000:]}"
            time.sleep(0.002)

    def until_said(self, text: str, times: int = 1) -> None:
        """Waits for a line in its log."""
        self.until(lambda: self.said().count(text) >= times)

    def end(self, seconds: float = 900) -> int:
        """Waits for its end; the status as a shell has it."""
        try:
            status = self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            self.process.kill()
            raise AssertionError(f"did not end within {seconds} s:\n{self.said()[-3000:]}") from None
        return status if status >= 0 else 128 - status

    def kill(self) -> None:
        """SIGKILL."""
        self.process.kill()
        self.process.wait()

    def last_line(self) -> str:
        """What it said on its way out, which is no traceback."""
        said = self.said()
        assert "Traceback" not in said, said[-6000:]
        return said.rstrip().rsplit("\n", 1)[-1]


@dataclasses.dataclass
class Training:
    """A run: its workdir and settings, and beside the workdir a folder of what its processes noted and said.

    Several processes of one run, and several runs in one workdir, are several calls of `start`.
    """

    world: World
    workdir: Path
    beside: Path
    settings: dict[str, Any]
    started: int = 0
    victims: list[Victim] = dataclasses.field(default_factory=list)

    def start(
        self, steps: int, devices: int = 1, poison: tuple[int, ...] = (), flags: tuple[str, ...] = (), **values: Any
    ) -> Victim:
        """Starts or continues the run in a process of its own; `flags` are further ones, as of several processes."""
        self.started += 1
        self.beside.mkdir(exist_ok=True)
        given = {"teacher": self.world.teacher, "data": self.world.data, "batch_size": 2, "steps": steps}
        own = settings("distill.py:v1,runlocal", self.workdir, **given | SMALL | TASK_ONLY | self.settings | values)
        count = f"--xla_force_host_platform_device_count={devices} {QUICK_XLA}"
        notes = {"FAULTS_NOTES": str(self.beside / "notes"), "FAULTS_POISON": ",".join(map(str, poison))}
        log = self.beside / f"{self.started:03d}.log"
        self.victims.append(Victim([*own, *flags], log, XLA_FLAGS=count, **notes))
        return self.victims[-1]

    def finish(self, steps: int, **values: Any) -> "Training":
        """Runs to the end."""
        victim = self.start(steps, **values)
        assert victim.end() == 0, victim.said()[-6000:]
        assert "Traceback" not in victim.said(), victim.said()
        return self

    def rows(self) -> int:
        """The last step in `metrics.csv`."""
        table = self.table("metrics.csv")
        return int(table[-1]["step"]) if table else 0

    def table(self, name: str) -> list[dict[str, str]]:
        """The whole rows of a table, without what depends on clock and memory."""
        path = self.workdir / name
        if not path.exists():
            return []
        with path.open(newline="") as file:
            rows = [row for row in csv.DictReader(file) if None not in row.values()]
        return [{key: value for key, value in row.items() if key not in EPHEMERAL} for row in rows]

    @property
    def checkpoints(self) -> Path:
        """The folder of all checkpoints."""
        return self.workdir / "checkpoints"

    def steps(self) -> list[int]:
        """The steps of all checkpoints, whole or not, ascending."""
        return sorted(int(path.name) for path in self.checkpoints.glob("*") if path.name.isdigit())

    def unfinished(self) -> list[int]:
        """Those that are being written, or were when the process ended."""
        return [step for step in self.steps() if not (self.checkpoints / str(step) / NAME).exists()]

    def newest(self) -> int:
        """The newest whole checkpoint; 0: there is none."""
        return max((step for step in self.steps() if not damage(to_path(self.checkpoints) / str(step))), default=0)

    def state(self, step: int) -> Any:
        """A checkpoint's state."""
        path = (self.checkpoints / str(step) / "state").absolute()
        with ocp.StandardCheckpointer() as checkpointer:
            found = checkpointer.metadata(path).item_metadata.tree
            like = jax.tree.map(lambda leaf: np.empty(leaf.shape, leaf.dtype), found)  # whatever the devices were
            return checkpointer.restore(path, like)

    def bits(self, step: int) -> dict[str, bytes]:
        """A checkpoint's numbers, by name."""
        leaves, _ = tree_flatten_with_path(self.state(step))
        return {keystr(path): np.asarray(leaf).tobytes() for path, leaf in leaves}

    def digest(self, step: int) -> str:
        """Of a checkpoint's numbers, as the victims note it."""
        return digest(self.state(step))

    def notes(self) -> list[dict[str, Any]]:
        """What the processes noted, in order."""
        path = self.beside / "notes"
        return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []

    def trained_on(self) -> dict[int, tuple[list[str], str]]:
        """Step -> names and digest of the batch, which must be the same whenever the step was made."""
        found: dict[int, tuple[list[str], str]] = {}
        for line in self.notes():
            if "batch" in line:
                batch = (line["names"], line["batch"])
                assert found.setdefault(line["step"], batch) == batch, line["step"]
        return found

    def require_same(
        self, other: "Training", steps: int, tables: tuple[str, ...] = ("metrics.csv", "validation.csv")
    ) -> None:
        """Both ended at `steps` with the same state, bit for bit, tables, examples and student."""
        mine, theirs = self.bits(steps), other.bits(steps)
        assert [name for name in mine if mine[name] != theirs[name]] == []
        assert mine.keys() == theirs.keys()
        for name in tables:
            assert self.table(name) == other.table(name), name
        ours, expected = self.trained_on(), other.trained_on()
        assert [ours[step] for step in range(1, steps + 1)] == [expected[step] for step in range(1, steps + 1)]
        weights = Path("model") / "unet" / "diffusion_pytorch_model.safetensors"
        assert (self.workdir / weights).read_bytes() == (other.workdir / weights).read_bytes()
