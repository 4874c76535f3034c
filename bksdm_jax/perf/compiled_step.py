"""The update of a run, compiled for devices that need not be here."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

import jax

from bksdm_jax.base.errors import in_short
from bksdm_jax.base.precision import exact_products
from bksdm_jax.base.progress import waiting
from bksdm_jax.perf.hlo import Program as CompiledProgram
from bksdm_jax.perf.hlo import Traffic
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.removal import RemovalPlan
from bksdm_jax.tasks.distill.config import TrainConfig, program_config
from bksdm_jax.training.program import Program, make_program
from bksdm_jax.training.sharding import make_mesh


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


def compile_update(config: TrainConfig, plan: RemovalPlan, networks: Architectures, devices: Sequence[Any]) -> Compiled:
    """Compiles an update for these devices; nothing is run, and no weights are needed."""
    mesh = make_mesh(config.fsdp, list(devices))
    program = make_program(
        program_config(config, config.plan.cached, (0,) * networks.text_encoder.max_length), plan, networks, mesh
    )
    images = config.batch_size // config.accumulation // len(devices)
    parts = _parts(program)
    platforms = ("tpu",) if devices[0].platform == "tpu" else None  # this machine's own
    with (
        exact_products(config.dtype),
        jax.set_mesh(mesh),
        waiting(f"compiling for {len(devices)} x {devices[0].device_kind}"),
    ):
        lowered = program.update.trace(*program.arguments()).lower(lowering_platforms=platforms)
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


def _parts(program: Program) -> dict[str, int]:
    """Bytes on one device of what is there throughout."""
    trees = {
        "teacher": program.frozen["teacher"],
        "text encoder, VAE": (program.frozen["text_encoder"], program.frozen["vae"]),
        "student": program.state.params,
        "moving average": program.state.ema,
        "optimiser": program.state.opt_state,
        "two batches": (program.batch, program.batch),
    }
    return {name: sum(map(_on_device, jax.tree.leaves(tree))) for name, tree in trees.items()}


def _on_device(leaf: jax.ShapeDtypeStruct) -> int:
    return math.prod(leaf.sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
