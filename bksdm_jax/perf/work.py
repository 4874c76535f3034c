"""FLOPs of a run's update, beside those of the passes that it can't do without."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.models.unet import UNet, UNetConfig, example_inputs, parameter_shapes
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.removal import RemovalPlan
from bksdm_jax.tasks.distill.config import TrainConfig, program_config
from bksdm_jax.training.program import make_program
from bksdm_jax.training.sharding import make_mesh
from bksdm_jax.training.state import make_optimizer
from bksdm_jax.training.update import Batch, Frozen, make_update


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of an update.

    Attributes:
        image: for each image, with what differentiating does once for the parameters;
        update: besides, however many images: clipping, optimiser, moving average;
        passes: of an image, of the passes that it can't do without.
    """

    image: float
    update: float
    passes: float

    def of(self, images: int) -> float:
        """Of an update with so many images."""
        return images * self.image + self.update


def count_work(config: TrainConfig, plan: RemovalPlan, networks: Architectures) -> Work:
    """FLOPs of an update, counted on uncompiled programs with XLA's attention, in which nothing is hidden.

    What is there once in an update is counted on an update with nothing to differentiate. The passes are those of the
    teacher, and forward, twice backward, and once more where all is computed anew, of the student.
    """
    size = config.resolution // networks.vae.factor
    mesh = make_mesh(1, jax.devices()[:1])
    single = dataclasses.replace(config, batch_size=1, accumulation=1, attention="xla", fsdp=1)
    program = make_program(
        program_config(single, config.plan.cached, (0,) * networks.text_encoder.max_length), plan, networks, mesh
    )
    optimizer = make_optimizer(config.optimizer)
    nothing = jax.jit(make_update(_no_loss, optimizer, config.optimizer.ema_decay, config.seed))
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):  # JAX's lowering of bfloat16 products needs it
        one, update = (step.lower(*program.arguments()).cost_analysis()["flops"] for step in (program.update, nothing))
    teacher, student = (_forward(unet, size, config) for unet in (plan.teacher, plan.student))
    passes = 3 + (config.remat == "full")
    return Work(one - update, update, (teacher if config.loss.distils else 0.0) + passes * student)


def _no_loss(params: Any, frozen: Frozen, batch: Batch, keys: jax.Array) -> tuple[jax.Array, dict[str, jax.Array]]:
    nothing = jnp.float32(0)
    return nothing, {"loss": nothing}


def _forward(unet: UNetConfig, size: int, config: TrainConfig) -> float:
    network = UNet(unet, compute_dtype(config.dtype), "xla")
    inputs = ({"params": parameter_shapes(unet)}, *example_inputs(unet, 1, size))
    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(network.apply).lower(*inputs).cost_analysis()["flops"]
