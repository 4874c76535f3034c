"""Validation takes the same images with the same noise, whatever the size of a batch and the run's options."""

import dataclasses
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bksdm_jax.tasks.distill.config import LossWeights
from bksdm_jax.tasks.noise import Augmentation
from bksdm_jax.training.sharding import make_mesh
from bksdm_jax.training.validation import validation
from tests import micro


def noisy(params, ema, frozen, batch, keys):
    """A loss of images and noise."""
    noise = jax.vmap(jax.random.normal)(keys)
    loss = jnp.mean(params * batch["images"] * noise) + frozen["offset"] + ema - params
    return loss, {"loss": loss, "loss_task": loss, "other": 2 * loss}


@pytest.mark.parametrize("size", [1, 2, 8])
def test_losses_do_not_depend_on_the_size_of_a_batch(size: int) -> None:
    images = np.arange(8, dtype=np.float32).reshape(-1, 1, size)
    mesh = make_mesh(1, jax.devices()[:1])
    evaluator = validation(noisy, lambda: ({"images": batch} for batch in images), len(images), 5, 3, mesh)
    assert (evaluator.every, evaluator.metrics) == (5, True)
    state = SimpleNamespace(average=jnp.float32(1), params=jnp.float32(2))
    found = evaluator.run(5, state, {"offset": jnp.float32(0.5)})
    key = jax.random.fold_in(jax.random.key(3), jnp.uint32(2**32 - 2))
    noise = np.array([jax.random.normal(jax.random.fold_in(key, image)) for image in range(8)])
    expected = np.mean(np.arange(8) * noise)
    assert found["loss"] == pytest.approx(expected + 0.5, rel=1e-5)
    assert found["raw/loss"] == pytest.approx(2 * expected + 0.5 + 1 - 2, rel=1e-5)  # the average stays the average
    assert set(found) == {"loss", "loss_task", "other", "raw/loss", "raw/loss_task"}


def test_options_of_the_training_stay_out() -> None:
    weights = LossWeights(feature=0.5, min_snr_gamma=5.0)
    trained = dataclasses.replace(micro.problem(), weights=weights, augmentation=Augmentation(0.1, {}, 0.1))
    plain = trained.plain()
    assert (plain.weights, plain.augmentation) == (LossWeights(feature=0.5), Augmentation())
    assert dataclasses.replace(plain, weights=weights, augmentation=trained.augmentation) == trained
