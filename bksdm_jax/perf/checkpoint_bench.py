"""What checkpoints cost a training run: seconds per save, the share that training waits, memory."""

import dataclasses
import tempfile
import time

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.errors import finite_number, whole_number
from bksdm_jax.base.memory import resident
from bksdm_jax.base.progress import waiting
from bksdm_jax.cost.timing import arbitrary_weights
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.perf.bench import bench_networks
from bksdm_jax.perf.config import BenchConfig
from bksdm_jax.training.adamw import make_optimizer
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.config import OptimizerConfig
from bksdm_jax.training.state import create_state


@dataclasses.dataclass(frozen=True)
class Save:
    """Of one checkpoint.

    Attributes:
        blocked: seconds until training goes on.
        background: seconds after that until the checkpoint is whole.
        memory: resident bytes then.
    """

    blocked: float
    background: float
    memory: int


def bench_checkpoints(config: BenchConfig) -> str:
    """Returns a few lines on `repeats` + 2 saves of the student's training state, in a temporary folder.

    The share of the training's time is that of a run with a checkpoint every `checkpoint_every` updates of
    `seconds_per_update`; a save that isn't done by the next one counts as blocking. Raises `InputError` for settings
    that can't be used.
    """
    whole_number("config", "checkpoint_every", config.checkpoint_every)
    finite_number("config", "seconds_per_update", config.seconds_per_update, 0)
    _, plan = bench_networks(config)
    params = jax.device_put(arbitrary_weights(parameter_shapes(plan.student), np.dtype(np.float32)))
    state = create_state(params, make_optimizer(OptimizerConfig()))
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    saves: list[Save] = []
    with tempfile.TemporaryDirectory() as folder, Checkpoints(folder, keep=1) as checkpoints, waiting("saving"):
        for step in range(1, config.repeats + 3):
            former, begin = checkpoints.blocked, time.monotonic()
            checkpoints.save(state.replace(step=jnp.int32(step)), {})
            checkpoints.join()
            blocked = checkpoints.blocked - former
            saves.append(Save(blocked, time.monotonic() - begin - blocked, resident()))
            if checkpoints.problem:
                raise checkpoints.problem
    return "\n".join(_told(config, size, saves))


def _told(config: BenchConfig, size: int, saves: list[Save]) -> list[str]:
    later = saves[2:]  # the first ones allocate what the others use again
    between = config.checkpoint_every * config.seconds_per_update
    waits = [save.blocked + max(0.0, save.background - between) for save in later]
    blocked, total = (float(np.median(values)) for values in (waits, [one.blocked + one.background for one in later]))
    grown = max(one.memory for one in later) - saves[1].memory
    share = blocked / (between + blocked) if between + blocked else 0.0
    return [
        f"a training state of {size / 2**20:,.1f} MiB, on {jax.devices()[0].device_kind}",
        f"a save: {total:.2f} s, of which training waits {blocked:.2f} s",
        f"a save every {config.checkpoint_every:,} updates of {config.seconds_per_update:g} s: {share:.2%} of the time",
        f"resident memory: {saves[1].memory / 2**20:,.0f} MiB after two saves, at most {grown / 2**20:+,.0f} MiB later",
    ]
