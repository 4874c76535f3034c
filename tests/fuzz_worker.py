"""Gives mutants of models to what the commands read before their first computation; `tests.test_config_fuzz` starts it.

A process of its own, which a mutant that takes too much memory or time may end. It reads mutants from its standard
input, one in a line, and writes how each one ended to its standard output.
"""

import contextlib
import dataclasses
import faulthandler
import json
import os
import resource
import shutil
import signal
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

os.environ |= {"JAX_PLATFORMS": "cpu", "HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}

import jax
import jax.numpy as jnp
from absl import logging

from bksdm_jax.base.errors import InputError
from bksdm_jax.cost import counts
from bksdm_jax.cost.table import cost_table, image_table
from bksdm_jax.diffusion.noise import image_keys
from bksdm_jax.perf import cost_report as report
from bksdm_jax.perf import plan
from bksdm_jax.perf.cost_report import CostConfig
from bksdm_jax.pipelines.clip_folder import load_clip
from bksdm_jax.pipelines.config import LoraOptions
from bksdm_jax.pipelines.folder import FolderModel
from bksdm_jax.pipelines.load import find_model, load_pipeline
from bksdm_jax.pipelines.lora import open_loras
from bksdm_jax.pipelines.pipeline import Pipeline
from bksdm_jax.pipelines.single_file import SingleFileModel
from bksdm_jax.pruning.convert_lora import convert_lora, moved_table
from bksdm_jax.pruning.lora_config import ConvertLoraConfig
from bksdm_jax.pruning.prune import PruneConfig, prune
from bksdm_jax.pruning.removal import plan_text
from bksdm_jax.sampling.generate import make_generate
from bksdm_jax.sampling.run import SampleConfig
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.tasks.distill.inputs import open_inputs
from bksdm_jax.tasks.distill.task import DistillTask
from tests import mutations

MOST_SECONDS, MOST_BYTES, MOST_LETTERS = 5, 2**30, 600
"""A command's processor time, its memory above that before reading, and of an error's line."""
_FORGET_EVERY = 250  # mutants, whose traces would otherwise add up


class _ReachedError(Exception):
    """All is read and checked; now would come the first computation."""


@dataclasses.dataclass(frozen=True)
class Runner:
    """The commands on one model; each returns when it would begin to compute, or raises `InputError`."""

    model: Path
    student: str
    data: Path
    scratch: Path
    options: dict[str, str]

    def commands(self) -> dict[str, Callable[[], Any]]:
        """Name -> command."""
        if self.model.name == "clip":
            return {"clip": lambda: load_clip(self.model)}
        if self.model.name == "lora":
            return {"lora": self.lora, "convert_lora": self.convert_lora}
        return {"prune": self.prune, "sample": self.sample, "cost": self.cost, "plan": self.plan, "train": self.train}

    def find(self) -> None:
        """What the commands begin with."""
        if self.model.name not in ("clip", "lora"):
            find_model(PruneConfig(str(self.model), "", **self.options).source(str(self.model)))

    def prune(self) -> None:
        shutil.rmtree(self.scratch / "student", ignore_errors=True)
        config = PruneConfig(teacher=str(self.model), student=self.student, **self.options)
        found, _ = prune(config, self.scratch / "student")
        plan_text(found)
        cost_table(found.teacher, found.student, found.blocks, found.teacher.sample_size or 64)
        find_model(self.scratch / "student")

    def lora(self) -> None:
        networks = find_model(self.data.with_name("shards")).architectures
        open_loras(LoraOptions(lora=(str(self.model),)), networks)

    def convert_lora(self) -> None:
        shutil.rmtree(self.scratch / "converted", ignore_errors=True)
        plan = self.model / "removal_plan.json"
        config = ConvertLoraConfig(lora=str(self.model), model=str(plan))
        moved_table(convert_lora(config, self.scratch / "converted")[1])

    def sample(self) -> None:
        config = SampleConfig(model=str(self.model), **self.options)
        pipeline = load_pipeline(config.source(config.model))
        networks, captions = pipeline.architectures, pipeline.caption_inputs(["a photo of a cat"])
        sampler = dataclasses.replace(config, resolution=networks.resolution)
        generate = make_generate(networks, sampler)
        keys = jax.eval_shape(image_keys, 0, jax.ShapeDtypeStruct((1,), jnp.uint32))
        if repr(networks) not in _TRACED:
            jax.eval_shape(generate, pipeline.params, captions, captions, keys)
            _TRACED.add(repr(networks))

    def cost(self) -> None:
        def of_teacher(models: dict[str, Any], *rest: Any) -> str:
            return image_table({"teacher": models["teacher"]}, *rest)

        with mock.patch.object(report, "image_table", of_teacher):  # tracing a U-Net takes a second
            report.cost_report(CostConfig(pipeline=str(self.model), **self.options))

    def plan(self) -> None:
        with mock.patch.object(plan, "count_work", side_effect=_ReachedError), contextlib.suppress(_ReachedError):
            list(plan.plan_run(self._distillation()))

    def train(self) -> None:
        config = self._distillation()
        DistillTask(config, open_inputs(config)).initial_params()

    def _distillation(self) -> DistillConfig:
        return DistillConfig(str(self.model), self.student, str(self.data), resolution=16, batch_size=4, **self.options)


_TRACED: set[str] = set()


@contextlib.contextmanager
def read_once() -> Iterator[None]:
    """Within it the commands share the weights that the first one reads."""
    with contextlib.ExitStack() as stack:
        for model in (FolderModel, SingleFileModel):
            pipelines: dict[Path, Pipeline] = {}

            def read(self: Any, pipelines: dict[Path, Pipeline] = pipelines, original: Any = model.read) -> Pipeline:
                if self.path not in pipelines:
                    pipelines[self.path] = original(self)
                return pipelines[self.path]

            stack.enter_context(mock.patch.object(model, "read", read))
        yield


@read_once()
def ended(runner: Runner, bound: Callable[[], contextlib.AbstractContextManager[None]]) -> dict[str, str]:
    """Command -> `reached`, `refused: ...`, or `failed: ...` with the traceback; each runs within `bound()`."""
    try:
        with bound():
            runner.find()
    except Exception as error:
        return {"find": _told(error)}
    found = {}
    for name, command in runner.commands().items():
        try:
            with bound():
                command()
            found[name] = "reached"
        except Exception as error:
            found[name] = _told(error)
    return found


def _told(error: Exception) -> str:
    if not isinstance(error, InputError):
        return f"failed: {''.join(traceback.format_exception(error, limit=-12))}"
    message = str(error)
    lists_blocks = message.startswith("student: ")  # of the teacher, whose number is bounded
    if (len(message) > MOST_LETTERS and not lists_blocks) or not message.isprintable():
        place = "".join(traceback.format_tb(error.__traceback__, limit=-3))
        found = f"{len(message)} characters, not one line of {MOST_LETTERS} printable ones"
        return f"failed: {place}{found}: {message[: 2 * MOST_LETTERS]!r}"
    return f"refused: {message}"


@contextlib.contextmanager
def bounded() -> Iterator[None]:
    """Within it the process ends after `MOST_SECONDS`, with a traceback, and gets no more than `MOST_BYTES`."""
    status = Path("/proc/self/status").read_text(encoding="ascii")
    used = next(int(line.split()[1]) * 1024 for line in status.splitlines() if line.startswith("VmData"))
    resource.setrlimit(resource.RLIMIT_DATA, (used + MOST_BYTES, resource.RLIM_INFINITY))
    signal.setitimer(signal.ITIMER_PROF, MOST_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        resource.setrlimit(resource.RLIMIT_DATA, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))


def write_mutant(base: Path, target: Path, changed: dict[str, bytes]) -> None:
    """A copy of a base with some files replaced; the others are links."""
    for path in sorted(base.rglob("*")):
        name = path.relative_to(base)
        if path.is_dir():
            (target / name).mkdir(parents=True)
        elif str(name) not in changed:
            (target / name).symlink_to(path)
    for name, data in changed.items():
        (target / name).write_bytes(data)


def main(bases: Path, student: str) -> None:
    """Answers mutants until the input ends; `bases` has the folders of models, and `data`."""
    faulthandler.register(signal.SIGPROF, chain=True)  # the signal's default then ends the process
    logging.set_verbosity(logging.FATAL)
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1)
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    with tempfile.TemporaryDirectory(dir=bases) as name:
        scratch = Path(name)
        for number, line in enumerate(sys.stdin):
            mutant = json.loads(line)
            files = {name: (bases / mutant["base"] / name).read_bytes() for name, *_ in mutant["changes"]}
            model = scratch / mutant["base"]
            model.mkdir()
            write_mutant(bases / mutant["base"], model, mutations.mutated(files, mutant))
            single = model / "model.safetensors" if mutant["base"] == "file" else model
            options = {"tokenizer": str(model / "tokenizer"), "prediction": "epsilon"} if single != model else {}
            runner = Runner(single, student, bases / "data", scratch, options)
            # Without changes it is a first call, which imports libraries.
            answer = ended(runner, bounded if mutant["changes"] else contextlib.nullcontext)
            print(json.dumps(answer), file=out)
            shutil.rmtree(model)
            if number % _FORGET_EVERY == _FORGET_EVERY - 1:
                _TRACED.clear()
                for cached in (counts.unet_layers, counts.text_encoder_cost, counts.decoder_cost):
                    cached.cache_clear()
                jax.clear_caches()


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
