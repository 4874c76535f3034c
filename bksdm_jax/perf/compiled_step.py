"""The update of a run, compiled for devices that need not be here."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh

from bksdm_jax.base.errors import in_short
from bksdm_jax.base.precision import exact_products
from bksdm_jax.base.progress import waiting
from bksdm_jax.perf.hlo import CompiledProgram, Traffic
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.removal import RemovalPlan
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.tasks.distill.task import make_problem, objective_of
from bksdm_jax.training.sharding import make_mesh
from bksdm_jax.training.train_step import TrainStep, make_train_step


@dataclasses.dataclass(frozen=True)
class Compiled:
    """What the compiler says of an update, by device.

    Attributes:
        images: in a micro-batch, on one device.
        arguments: bytes by part of what stays in memory, the program itself included.
        temporaries: bytes that the update takes besides; None if it doesn't fit.
        bytes_accessed: of an update, custom calls' included.
        traffic: collectives by kind.
        refused: what the compiler said if it doesn't fit.
    """

    images: int
    arguments: dict[str, int]
    temporaries: int | None
    bytes_accessed: float = 0.0
    traffic: dict[str, Traffic] = dataclasses.field(default_factory=dict)
    refused: str = ""

    @property
    def needed(self) -> float:
        """Bytes in all; infinite if the compiler refused."""
        return math.inf if self.temporaries is None else sum(self.arguments.values()) + self.temporaries


def planned_step(config: DistillConfig, plan: RemovalPlan, networks: Architectures, mesh: Mesh) -> TrainStep:
    """The update of a run, as shapes alone."""
    captions = networks.kind.caption_shapes(networks.configs)
    empty = {name: np.zeros(one.shape, one.dtype) for name, one in captions.items()}
    objective = objective_of(config, make_problem(config, plan, networks, empty), config.plan.cached)
    return make_train_step(objective, config.optimizer, config.seed, mesh)


def compile_update(
    config: DistillConfig, plan: RemovalPlan, networks: Architectures, devices: Sequence[Any]
) -> Compiled:
    """Compiles an update for these devices; nothing is run, and no weights are needed."""
    mesh = make_mesh(config.fsdp, list(devices))
    step = planned_step(config, plan, networks, mesh)
    images = config.batch_size // config.accumulation // len(devices)
    parts = _parts(step)
    platforms = ("tpu",) if devices[0].platform == "tpu" else None  # this machine's own
    with (
        exact_products(config.dtype),
        jax.set_mesh(mesh),
        waiting(f"compiling for {len(devices)} x {devices[0].device_kind}"),
    ):
        lowered = step.update.trace(*step.arguments()).lower(lowering_platforms=platforms)
        try:
            compiled = lowered.compile()
        except Exception as error:  # the compiler's own types
            if "RESOURCE_EXHAUSTED" not in str(error):
                raise
            return Compiled(images, parts, None, refused=in_short(error, 300))
    memory, told = compiled.memory_analysis(), CompiledProgram(compiled.as_text(), len(devices))
    padding = max(0, memory.argument_size_in_bytes - told.parameter_bytes())  # arrays fill whole tiles
    return Compiled(
        images,
        parts | {"padding, program": padding + memory.generated_code_size_in_bytes},
        memory.temp_size_in_bytes + max(0, memory.output_size_in_bytes - memory.alias_size_in_bytes),
        compiled.cost_analysis()["bytes accessed"] * told.loop_factor() + told.custom_call_bytes(),
        told.collectives(),
    )


def _parts(step: TrainStep) -> dict[str, int]:
    """Bytes on one device of what is there throughout."""
    trees = {
        "teacher": step.frozen.get("teacher", {}),
        "text encoder, VAE": {name: params for name, params in step.frozen.items() if name != "teacher"},
        "student": step.state.params,
        "moving average": step.state.ema,
        "optimiser": step.state.opt_state,
        "two batches": (step.batch, step.batch),
    }
    return {name: sum(map(_on_device, jax.tree.leaves(tree))) for name, tree in trees.items()}


def _on_device(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
