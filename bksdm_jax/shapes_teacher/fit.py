"""Trains one network of the teacher with the project's update, loop and checkpoints."""

import dataclasses
import itertools
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from bksdm_jax.progress import waiting
from bksdm_jax.training.checkpoints import Checkpoints
from bksdm_jax.training.loop import LoopConfig, run_loop
from bksdm_jax.training.state import OptimizerConfig, create_state, make_optimizer
from bksdm_jax.training.update import Frozen, Loss, make_update
from bksdm_jax.training.writers import make_writer


@dataclasses.dataclass(frozen=True)
class Phase:
    """How long and how fast one network is trained.

    Attributes:
        steps: updates.
        batch_size: examples an update.
        learning_rate: after the warm-up; it then falls along a cosine to zero.
        warmup: updates.
        ema_decay: of the moving average, which is what is kept.
        checkpoint_every, log_every: updates.
    """

    steps: int
    batch_size: int
    learning_rate: float
    warmup: int = 100
    ema_decay: float = 0.999
    checkpoint_every: int = 250
    log_every: int = 50

    @property
    def optimizer(self) -> OptimizerConfig:
        """The same as the optimiser's settings."""
        return OptimizerConfig(
            learning_rate=self.learning_rate,
            warmup_steps=self.warmup,
            cosine_steps=self.steps,
            ema_decay=self.ema_decay,
        )


def fit(
    workdir: Path,
    phase: Phase,
    params: Any,
    frozen: Frozen,
    loss: Loss,
    batches: Iterator[Mapping[str, np.ndarray]],
    seed: int,
) -> dict[str, Any] | None:
    """Trains from `params`, or from the newest checkpoint in `workdir`.

    Args:
        workdir: for checkpoints and metrics.
        phase: how long and how fast.
        params: where training begins, float32.
        frozen: what the loss reads besides.
        loss: as `make_update` takes it.
        batches: examples [M, ...]; may depend on nothing but being the next.
        seed: of the noise.

    Returns:
        the moving average as numpy float32, or None if interrupted (the same call continues).
    """
    workdir.mkdir(parents=True, exist_ok=True)
    optimizer = make_optimizer(phase.optimizer)
    state = jax.jit(lambda p: create_state(p, optimizer))(params)
    with Checkpoints(workdir / "checkpoints", keep=1) as checkpoints:
        if checkpoints.latest() is not None:
            state = checkpoints.restore(state)
        first = int(state.step)
        if first < phase.steps:
            update = jax.jit(make_update(loss, optimizer, phase.ema_decay, seed), donate_argnums=0)
            parted = ({name: value[None] for name, value in batch.items()} for batch in batches)
            one = next(parted)
            with waiting(f"{workdir.name}: compiling the update"):
                update = update.lower(state, frozen, one).compile()
            state, finished = run_loop(
                state,
                frozen,
                update,
                itertools.chain([one], parted),
                LoopConfig(phase.steps, phase.log_every, phase.checkpoint_every, 0, phase.batch_size),
                make_writer(workdir, first),
                checkpoints,
            )
            if not finished:
                return None
    return jax.tree.map(np.asarray, state.ema)


def shuffled(examples: Mapping[str, np.ndarray], batch_size: int, seed: int) -> Iterator[dict[str, np.ndarray]]:
    """Endless batches of random examples out of arrays [N, ...] that lie in memory."""
    rng = np.random.default_rng(seed)
    count = len(next(iter(examples.values())))
    while True:
        order = rng.permutation(count)
        for start in range(0, count - batch_size + 1, batch_size):
            chosen = order[start : start + batch_size]
            yield {name: value[chosen] for name, value in examples.items()}
