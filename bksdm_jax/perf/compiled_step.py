"""A run's update, compiled for devices that need not be attached."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
from jax.sharding import Mesh

from bksdm_jax.base.compiling import uncollected
from bksdm_jax.base.errors import in_short
from bksdm_jax.base.precision import exact_products
from bksdm_jax.base.progress import waiting
from bksdm_jax.perf.hlo import CompiledProgram, Traffic
from bksdm_jax.perf.planned import PlannedRun
from bksdm_jax.perf.traffic import Moved, memory_traffic
from bksdm_jax.training.sharding import make_mesh
from bksdm_jax.training.train_step import TrainStep, make_train_step


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The compiler's figures for an update, per device.

    Attributes:
        images: of a micro-batch on one device.
        arguments: bytes that stay in memory, by part, including the program itself.
        temporaries: further bytes during the update; None if it doesn't fit.
        moved: what an update reads from the device's memory and writes to it, by kind of kernel.
        traffic: collectives by kind.
        refused: the compiler's message if it doesn't fit.
    """

    images: int
    arguments: dict[str, int]
    temporaries: int | None
    moved: dict[str, Moved] = dataclasses.field(default_factory=dict)
    traffic: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    refused: str = ""

    @property
    def needed(self) -> float:
        """Total bytes; infinite if it doesn't fit."""
        return math.inf if self.temporaries is None else sum(self.arguments.values()) + self.temporaries


def planned_step(run: PlannedRun, mesh: Mesh) -> TrainStep:
    """A run's update, from shapes only."""
    config = run.config
    return make_train_step(run.objective(config), config.optimizer, config.seed, mesh, config.conv_layout)


def compile_update(run: PlannedRun, devices: Sequence[Any]) -> Compiled:
    """Compiles an update for these devices, without running it or reading weights."""
    config = run.config
    mesh = make_mesh(config.fsdp, list(devices))
    step = planned_step(run, mesh)
    images = config.batch_size // config.accumulation // len(devices)
    arguments = argument_bytes(run, step)
    platforms = ("tpu",) if devices[0].platform == "tpu" else None  # None: this machine's own
    with (
        exact_products(config.dtype),
        jax.set_mesh(mesh),
        waiting(f"compiling for {len(devices)} x {devices[0].device_kind}, {images} images each"),
    ):
        with uncollected():
            lowered = step.update.trace(*step.arguments()).lower(lowering_platforms=platforms)
        try:
            compiled = lowered.compile()
        except Exception as error:  # the compiler's own types
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return Compiled(images, arguments, None, refused=in_short(error, 300))
    memory, text = compiled.memory_analysis(), compiled.as_text()
    program = CompiledProgram(text, len(devices))
    padding = max(0, memory.argument_size_in_bytes - program.parameter_bytes())  # arrays are padded to tiles
    return Compiled(
        images,
        arguments | {"padding, program": padding + memory.generated_code_size_in_bytes},
        memory.temp_size_in_bytes + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        memory_traffic(text),
        program.collectives(),
    )


def argument_bytes(run: PlannedRun, step: TrainStep) -> dict[str, int]:
    """Bytes on one device that stay allocated, by part; a moving average is among them if one is kept."""
    trees: dict[str, Any] = {
        part: [step.frozen[name] for name in names if name in step.frozen] for part, names in run.frozen.items()
    }
    trees[run.trained] = step.state.params
    if jax.tree.leaves(step.state.ema):
        trees["moving average"] = step.state.ema
    trees |= {"optimiser": step.state.opt_state, "two batches": (step.batch, step.batch)}
    return {part: sum(map(_on_device, jax.tree.leaves(tree))) for part, tree in trees.items()}


def _on_device(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
