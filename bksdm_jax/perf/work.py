"""FLOPs of a run's update, and of its necessary forward and backward passes."""

import dataclasses

import jax
import jax.numpy as jnp

from bksdm_jax.base.compiling import lower
from bksdm_jax.base.precision import compute_dtype
from bksdm_jax.models.unet import UNet, example_inputs, parameter_shapes
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.perf.compiled_step import planned_step
from bksdm_jax.perf.planned import PlannedRun
from bksdm_jax.training.sharding import make_mesh
from bksdm_jax.training.train_step import make_update


@dataclasses.dataclass(frozen=True)
class Work:
    """FLOPs of an update.

    Attributes:
        image: per image, or whatever else the run's `batch_size` counts.
        update: once per update: clipping, optimiser, moving average.
        passes: per image, of the U-Nets' necessary passes only.
    """

    image: float
    update: float
    passes: float


def count_work(run: PlannedRun) -> Work:
    """FLOPs of an update, counted on uncompiled programs by XLA's own attention and norms: custom calls hide theirs.

    Convolutions have the forms of this machine's device: CPUs enlarge some maps that others don't
    (`convolve_doubled`).
    The FLOPs once per update are those of an update with a constant loss.
    """
    config, mesh = run.config, make_mesh(1, jax.devices()[:1])
    step = planned_step(run.resized(batch_size=1, accumulation=1, attention="xla", norms="xla", fsdp=1), mesh)
    zero = jnp.float32(0)
    without_loss = jax.jit(make_update(lambda *_: (zero, {"loss": zero}), config.optimizer, config.seed))
    with jax.set_mesh(mesh), jax.numpy_dtype_promotion("standard"):  # JAX's lowering of bfloat16 products needs it
        flops, update = (lower(one, *step.arguments()).cost_analysis()["flops"] for one in (step.update, without_loss))
    size, dtype = config.resolution // run.networks.factor, compute_dtype(config.dtype)
    passes = sum(times * _forward(unet, size, dtype) for unet, times in run.forwards if times)
    return Work(flops - update, update, passes)


def _forward(unet: UNetConfig, size: int, dtype: jnp.dtype) -> float:
    network = UNet(unet, dtype, "xla")
    inputs = ({"params": parameter_shapes(unet)}, *example_inputs(unet, 1, size))
    with jax.numpy_dtype_promotion("standard"):
        return lower(jax.jit(network.apply), *inputs).cost_analysis()["flops"]
