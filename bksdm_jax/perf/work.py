"""FLOPs of a run's update, beside those of the passes that it can't do without."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.models.unet import UNet, example_inputs, parameter_shapes
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.perf.compiled_step import planned_step
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.removal import RemovalPlan
from bksdm_jax.tasks.distill.config import DistillConfig
from bksdm_jax.training.sharding import make_mesh
from bksdm_jax.training.state import make_optimizer
from bksdm_jax.training.train_step import Batch, Frozen, make_update


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


def count_work(config: DistillConfig, plan: RemovalPlan, networks: Architectures) -> Work:
    """FLOPs of an update, counted on uncompiled programs with XLA's attention, in which nothing is hidden.

    What is there once in an update is counted on an update with nothing to differentiate. The passes are those of the
    teacher, and forward, twice backward, and once more where all is computed anew, of the student.
    """
    size = config.resolution // networks.factor
    mesh = make_mesh(1, jax.devices()[:1])
    single = dataclasses.replace(config, batch_size=1, accumulation=1, attention="xla", fsdp=1)
    step = planned_step(single, plan, networks, mesh)
    optimizer = make_optimizer(config.optimizer)
    nothing = jax.jit(make_update(_no_loss, optimizer, config.optimizer.ema_decay, config.seed))
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):  # JAX's lowering of bfloat16 products needs it
        one, update = (one.lower(*step.arguments()).cost_analysis()["flops"] for one in (step.update, nothing))
    teacher, student = (_forward(unet, size, config) for unet in (plan.teacher, plan.student))
    passes = 3 + (config.remat == "full")
    return Work(one - update, update, (teacher if config.loss.distils else 0.0) + passes * student)


def _no_loss(
    params: Any, ema: Any, frozen: Frozen, batch: Batch, keys: jax.Array
) -> tuple[jax.Array, dict[str, jax.Array]]:
    nothing = jnp.float32(0)
    return nothing, {"loss": nothing}


def _forward(unet: UNetConfig, size: int, config: DistillConfig) -> float:
    network = UNet(unet, compute_dtype(config.dtype), "xla")
    inputs = ({"params": parameter_shapes(unet)}, *example_inputs(unet, 1, size))
    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(network.apply).lower(*inputs).cost_analysis()["flops"]
