"""Validation takes the same images with the same noise, whatever the size of a batch and the run's options."""

import dataclasses
from pathlib import Path
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bksdm_jax.pipelines.load import find_model
from bksdm_jax.pruning.removal import plan_removal, removed_blocks
from bksdm_jax.tasks.distill.config import DistillConfig, program_config
from bksdm_jax.tasks.distill.losses import LossWeights
from bksdm_jax.tasks.distill.objective import Augmentation
from bksdm_jax.training import program
from bksdm_jax.training.sharding import make_mesh, replicated
from bksdm_jax.training.validation import make_validation, validate
from tests import tiny


def noisy(params, frozen, batch, keys):
    """A loss of images and noise."""
    noise = jax.vmap(jax.random.normal)(keys)
    loss = jnp.mean(params * batch["images"] * noise)
    return loss, {"loss": loss, "loss_task": loss}


@pytest.mark.parametrize("size", [1, 2, 8])
def test_losses_do_not_depend_on_the_size_of_a_batch(size: int) -> None:
    images = np.arange(8, dtype=np.float32).reshape(-1, 1, size)
    evaluate = make_validation(noisy, 3, replicated(make_mesh(1, jax.devices()[:1])))
    state = SimpleNamespace(ema=jnp.float32(1), params=jnp.float32(2))
    found = validate(evaluate, state, {}, lambda: ({"images": batch} for batch in images), len(images))
    key = jax.random.fold_in(jax.random.key(3), jnp.uint32(2**32 - 2))
    noise = np.array([jax.random.normal(jax.random.fold_in(key, image)) for image in range(8)])
    assert found["loss"] == pytest.approx(np.mean(np.arange(8) * noise), rel=1e-5)
    assert found["raw/loss"] == pytest.approx(2 * found["loss"], rel=1e-5)


def test_options_of_the_training_stay_out(micro_teacher: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    problems = []
    monkeypatch.setattr(program, "make_batch_loss", lambda problem, dtype: problems.append(problem) or noisy)
    networks = find_model(micro_teacher).architectures
    plan = plan_removal(networks.unet, removed_blocks(tiny.MICRO_STUDENT))
    weights = LossWeights(feature=0.5, min_snr_gamma=5.0)
    config = DistillConfig("", "", "", resolution=16, batch_size=1, accumulation=1, dtype="float32", loss=weights)
    plain = program_config(config, cached=False)
    settings = dataclasses.replace(plain, augmentation=Augmentation(0.1, (0,), 0.1))
    program.make_program(settings, plan, networks, make_mesh(1, jax.devices()[:1]))
    trained, validated = problems
    assert (trained.weights, trained.augmentation) == (weights, settings.augmentation)
    assert (validated.weights, validated.augmentation) == (LossWeights(feature=0.5), Augmentation())
