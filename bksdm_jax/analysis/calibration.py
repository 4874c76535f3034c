"""What a calibration set says of a teacher's blocks: the gradient of the task loss, and outputs without a block."""

import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh

from bksdm_jax.base.precision import cast_frozen
from bksdm_jax.base.progress import Progress
from bksdm_jax.models.unet import UNet
from bksdm_jax.models.unet_table import replaceable
from bksdm_jax.pipelines.pipeline import Architectures
from bksdm_jax.pruning.removal import plan_removal
from bksdm_jax.tasks.distill.config import LossWeights
from bksdm_jax.tasks.distill.objective import Problem, make_loss
from bksdm_jax.tasks.noise import NoisyBatch, moments_of, noise_latents
from bksdm_jax.training.sharding import batch_to_global, device_put_global, replicated

Batches = Callable[[], Iterator[dict[str, Any]]]
"""Begins anew: batches of one micro-batch, arrays [1, M, ...], as `training_batches` yields them."""


class Calibration:
    """A teacher on its devices, and noised latents of a calibration set, always the same ones.

    Image i has noise and a timestep, drawn uniformly, that depend on the seed and i alone.
    """

    def __init__(
        self,
        networks: Architectures,
        params: Mapping[str, Any],
        batches: Batches,
        count: int,
        seed: int,
        dtype: jnp.dtype,
        mesh: Mesh,
    ) -> None:
        """Puts the weights on the devices.

        Args:
            networks: the teacher's pipeline.
            params: by network.
            batches: of the calibration set.
            count: of batches.
            seed: of noise and timesteps.
            dtype: of the networks' computations.
            mesh: images are split over its devices.
        """
        self._networks, self._batches, self._count, self._seed = networks, batches, count, seed
        self._dtype, self._mesh = dtype, mesh
        weights = LossWeights(output=0.0, feature=0.0)
        self._problem = Problem(plan_removal(networks.denoiser, ()), networks, weights)
        name = networks.kind.denoiser  # whose gradients have its weights' dtype
        exact = {name: jax.tree.map(lambda leaf: np.asarray(leaf, np.float32), params[name])}
        both = cast_frozen(params, dtype) | exact
        placed = device_put_global(both, jax.tree.map(lambda _: replicated(mesh), both))
        self._params, self._frozen = placed.pop(name), placed

    def gradient(self) -> tuple[Any, float]:
        """dL/dW of the U-Net's parameters, float32 numpy, and L: the mean task loss of the images."""
        loss = make_loss(self._problem, self._dtype)

        def add(sums: Any, params: Any, frozen: Any, batch: Any, first: jax.Array) -> tuple[Any, jax.Array]:
            noisy = self._noisy(frozen, batch, first)
            (value, _), slopes = jax.value_and_grad(loss, has_aux=True)(params, {}, noisy)
            return jax.tree.map(jnp.add, sums, slopes), value

        program = jax.jit(add, donate_argnums=0, out_shardings=replicated(self._mesh))
        sums = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, jnp.float32, device=leaf.sharding), self._params)
        values = []
        for batch, first in self._each("gradients"):
            sums, value = program(sums, self._params, self._frozen, batch, first)
            values.append(value)
        mean = jax.tree.map(lambda leaf: np.asarray(leaf) / len(values), sums)
        return mean, float(np.mean([np.asarray(value) for value in values]))

    def output_errors(self, removals: Sequence[Sequence[str]]) -> list[float]:
        """The mean squared error of the U-Net's output without these blocks, for each of `removals`.

        Interpolations stand for missing ResNets. One program is compiled for all.
        """
        blocks = replaceable(self._networks.denoiser)
        kept = [np.array([block not in missing for block in blocks]) for missing in ((), *removals)]
        unet = UNet(self._networks.denoiser, self._dtype)

        @functools.partial(jax.jit, out_shardings=replicated(self._mesh))
        def error(params: Any, noisy: NoisyBatch, kept: jax.Array, whole: jax.Array) -> tuple[jax.Array, jax.Array]:
            masks = jnp.broadcast_to(kept, (noisy.timesteps.shape[0], len(blocks)))
            conditioning = dict(noisy.conditioning) | {"kept": masks}
            out = unet.apply({"params": params}, noisy.noisy.astype(self._dtype), noisy.timesteps, conditioning)
            out = out.astype(jnp.float32)
            return jnp.mean(jnp.square(out - whole)), out

        noise = jax.jit(self._noisy)
        sums = np.zeros(len(removals))
        for batch, first in self._each("outputs"):
            noisy = noise(self._frozen, batch, first)
            _, whole = error(self._params, noisy, kept[0], jnp.zeros_like(noisy.noisy))
            each = [error(self._params, noisy, mask, whole)[0] for mask in kept[1:]]
            sums += np.array([np.asarray(value, np.float64) for value in each])
        return [float(value) for value in sums / self._count]

    def _noisy(self, frozen: Any, batch: Any, first: jax.Array) -> NoisyBatch:
        """Noised latents of a batch, [M, ...], whose first image is number `first`."""
        batch = jax.tree.map(lambda value: value[0], dict(batch))
        moments = moments_of(self._networks, self._dtype, frozen, batch)
        key = jax.random.key(self._seed)
        keys = jax.vmap(lambda i: jax.random.fold_in(key, first + i))(jnp.arange(moments[0].shape[0]))
        return noise_latents(self._networks, self._dtype, frozen, *moments, batch["captions"], keys)

    def _each(self, what: str) -> Iterator[tuple[Any, np.int32]]:
        """Each batch on the devices, and the number of its first image."""
        with Progress(what, self._count) as progress:
            for number, rows in zip(range(self._count), self._batches(), strict=False):
                batch = batch_to_global(self._mesh, rows)
                yield batch, np.int32(number * jax.tree.leaves(batch)[0].shape[1])
                progress.advance()
