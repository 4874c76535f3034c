"""The program of one update, with shapes and shardings of all that it takes: of architectures, without weights."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import Mesh

from bksdm_jax.models.clip import clip_text_parameter_shapes
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.models.vae import vae_parameter_shapes
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.removal import RemovalPlan
from bksdm_jax.tasks.distill.losses import LossWeights
from bksdm_jax.tasks.distill.objective import Augmentation, Problem, make_batch_loss
from bksdm_jax.training.sharding import batch_sharding, parameter_shardings, replicated
from bksdm_jax.training.state import OptimizerConfig, TrainState, create_state, make_optimizer
from bksdm_jax.training.update import Loss, make_update


@dataclasses.dataclass(frozen=True)
class ProgramConfig:
    """What an update's program depends on besides the architectures; attributes are those of a `TrainConfig`.

    Attributes:
        cached: whether batches are of cached latents.
        dtype: of the networks' computations.
    """

    resolution: int
    batch_size: int
    accumulation: int
    cached: bool
    dtype: jnp.dtype
    attention: str
    remat: str
    seed: int
    loss: LossWeights
    optimizer: OptimizerConfig
    augmentation: Augmentation = Augmentation()


@dataclasses.dataclass(frozen=True)
class Program:
    """One update, jitted and not compiled, and its arguments as `ShapeDtypeStruct` with shardings.

    The state is donated, and comes back in the same shardings. `plain_loss` is what the update minimises without its
    options, so that runs can be compared: captions and noise are as they are, and every noise level weighs the same.
    """

    update: Any
    plain_loss: Loss
    state: TrainState
    frozen: dict[str, Any]
    batch: dict[str, jax.ShapeDtypeStruct]

    def arguments(self) -> tuple[Any, ...]:
        """What the update is called with."""
        return self.state, self.frozen, self.batch


def make_program(config: ProgramConfig, plan: RemovalPlan, networks: Architectures, mesh: Mesh) -> Program:
    """Builds the update of a student over the devices of a mesh.

    Args:
        config: see there; its numbers divide as they must.
        plan: teacher and student.
        networks: the teacher's pipeline.
        mesh: of the devices, which may be those of a topology that isn't here.
    """
    problem = Problem(
        plan,
        networks.vae,
        networks.text_encoder,
        networks.schedule,
        config.loss,
        config.attention,
        config.remat,
        config.augmentation,
    )
    optimizer = make_optimizer(config.optimizer)
    loss = make_batch_loss(problem, config.dtype)
    step = make_update(loss, optimizer, config.optimizer.ema_decay, config.seed)
    state = state_shapes(config.optimizer, plan, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, state)
    update = jax.jit(step, donate_argnums=0, out_shardings=(shardings, replicated(mesh)))
    plain = dataclasses.replace(
        problem, weights=dataclasses.replace(config.loss, min_snr_gamma=0.0), augmentation=Augmentation()
    )
    plain_loss = make_batch_loss(plain, config.dtype)
    return Program(
        update, plain_loss, state, frozen_shapes(config, plan, networks, mesh), batch_shapes(config, networks, mesh)
    )


def state_shapes(config: OptimizerConfig, plan: RemovalPlan, mesh: Mesh) -> TrainState:
    """Shapes, dtypes and shardings of what training changes."""
    optimizer = make_optimizer(config)
    shapes = jax.eval_shape(lambda p: create_state(p, optimizer), parameter_shapes(plan.student))
    return _sharded(shapes, parameter_shardings(mesh, shapes))


def frozen_shapes(config: ProgramConfig, plan: RemovalPlan, networks: Architectures, mesh: Mesh) -> dict[str, Any]:
    """Shapes, dtypes (as `cast_frozen` makes them) and shardings of the frozen networks."""
    shapes = {
        "teacher": parameter_shapes(plan.teacher),
        "vae": vae_parameter_shapes(networks.vae),
        "text_encoder": clip_text_parameter_shapes(networks.text_encoder),
    }
    cast = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(leaf.shape, config.dtype if leaf.ndim > 1 else jnp.float32), shapes
    )
    return _sharded(cast, parameter_shardings(mesh, cast))


def batch_shapes(config: ProgramConfig, networks: Architectures, mesh: Mesh) -> dict[str, jax.ShapeDtypeStruct]:
    """Shapes, dtypes and shardings of a batch, as `training_batches` yields it over all processes."""
    lead = (config.accumulation, config.batch_size // config.accumulation)
    shapes = {"tokens": ((*lead, networks.text_encoder.max_length), jnp.int32)}
    if config.cached:
        side = config.resolution // networks.vae.factor
        shapes["moments"] = ((*lead, 2, side, side, networks.vae.latent_channels), jnp.uint16)
    else:
        shapes["images"] = ((*lead, config.resolution, config.resolution, 3), jnp.uint8)
    sharding = batch_sharding(mesh)
    return {name: jax.ShapeDtypeStruct(*shape, sharding=sharding) for name, shape in shapes.items()}


def _sharded(shapes: Any, shardings: Any) -> Any:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), shapes, shardings
    )
