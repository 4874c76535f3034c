"""FLOPs of a run's update, beside those of the passes that it can't do without."""

import dataclasses

import jax

from bksdm_jax.dtypes import compute_dtype
from bksdm_jax.models.unet import UNet, UNetConfig, example_inputs, parameter_shapes
from bksdm_jax.pruning.plan import RemovalPlan
from bksdm_jax.training.config import TrainConfig, program_config
from bksdm_jax.training.program import make_program
from bksdm_jax.training.sharding import make_mesh
from bksdm_jax.weights.pipeline import Architectures


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of an image: of the update, and of the passes that it can't do without."""

    update: float
    passes: float


def count_work(config: TrainConfig, plan: RemovalPlan, networks: Architectures) -> Work:
    """FLOPs of an image, counted on uncompiled programs with XLA's attention, in which nothing is hidden.

    The passes are those of the teacher, and forward, twice backward, and once more where all is computed anew, of the
    student.
    """
    mesh = make_mesh(1, jax.devices()[:1])
    size = config.resolution // networks.vae.factor
    single = dataclasses.replace(config, batch_size=1, accumulation=1, attention="xla", fsdp=1)
    program = make_program(
        program_config(single, config.plan.cached, (0,) * networks.text_encoder.max_length), plan, networks, mesh
    )
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):  # JAX's lowering of bfloat16 products needs it
        update = program.update.lower(*program.arguments()).cost_analysis()["flops"]
    teacher, student = (_forward(unet, size, config) for unet in (plan.teacher, plan.student))
    passes = 3 + (config.remat == "full")
    return Work(update, (teacher if config.loss.distils else 0.0) + passes * student)


def _forward(unet: UNetConfig, size: int, config: TrainConfig) -> float:
    network = UNet(unet, compute_dtype(config.dtype), "xla")
    inputs = ({"params": parameter_shapes(unet)}, *example_inputs(unet, 1, size))
    with jax.numpy_dtype_promotion("standard"):
        return jax.jit(network.apply).lower(*inputs).cost_analysis()["flops"]
