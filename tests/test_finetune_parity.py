"""Losses and gradients of fine-tunings against their PyTorch twin, and a LoRA's update on a mesh."""

import dataclasses
import functools
from typing import Any

import jax
import numpy as np
import pytest
from jax.sharding import Mesh

from bksdm_jax.base import trees
from bksdm_jax.formats import names
from bksdm_jax.tasks.finetune.config import AdapterConfig, FinetuneConfig
from bksdm_jax.tasks.finetune.objective import PRIOR, Problem, make_loss, make_objective
from bksdm_jax.tasks.finetune.trained import Trained, what_is_trained
from bksdm_jax.training.adamw import make_optimizer
from bksdm_jax.training.sharding import batch_to_global, gather_to_host, make_mesh
from bksdm_jax.training.state import OptimizerConfig, TrainState, create_state
from bksdm_jax.training.train_step import TrainStep, make_train_step
from tests import micro, tiny
from tests.arrays import require_equal
from tests.finetune_twin import (
    ONE_STAGE,
    RESOLUTION,
    Tensors,
    Twin,
    architectures,
    drawn_rows,
    images,
    in_pytorch,
    originals,
    parameters,
)

TOLERANCE = 1e-4
IMAGES, PRIOR_WEIGHT, GAMMA = 2, 0.7, 5.0
LORA = AdapterConfig(rank=4, alpha=6.0, text_rank=2, text_alpha=1.0)
CONVOLUTIONS = ("to_q", "to_v", "proj_in", "conv1", "conv", "conv_shortcut", "time_emb_proj", "ff.net.2")
CROSS_ATTENTION = ("attn2.to_k", "attn2.to_v")
slow = pytest.mark.slow


def settings(**options: Any) -> FinetuneConfig:
    return FinetuneConfig("a model", "images", **options)


FULL, ONLY = settings(), settings(only=CROSS_ATTENTION, text_encoder=False)


def batch_and_keys(prior: bool) -> tuple[dict[str, Any], jax.Array]:
    """Of both the images and the class, one is less noisy than where `GAMMA` begins to count, and one is noisier."""
    return images(IMAGES, 0) | ({PRIOR: images(IMAGES, 1)} if prior else {}), micro.keys(IMAGES, seed=14)


@functools.cache
def gradient(student: str, prediction: str, config: FinetuneConfig, prior_weight: float, gamma: float) -> Any:
    """(trained, frozen, batch, keys) -> ((loss, terms), gradients)."""
    trained = what_is_trained(config, architectures(student, prediction))
    loss = make_loss(Problem(trained, prior_weight, gamma))
    return jax.jit(jax.value_and_grad(lambda params, *rest: loss(params, None, *rest), has_aux=True))


def started(trained: Trained, params: dict[str, Any]) -> dict[str, Any]:
    """The trained parameters before training, but with random numbers in place of zeros, so that adapters matter."""
    generator = np.random.default_rng(4)

    def drawn(leaf: np.ndarray) -> np.ndarray:
        return leaf if leaf.any() else generator.standard_normal(leaf.shape, np.float32)

    return jax.tree.map(drawn, trained.initial(params, 3))


def require_same_gradients(ours: Tensors, theirs: Tensors, tolerance: float = TOLERANCE) -> None:
    assert ours.keys() == theirs.keys()
    for network, expected in theirs.items():
        found = ours[network]
        assert found.keys() == expected.keys()
        whole = np.sqrt(sum(np.square(grad).sum() for grad in expected.values()))
        for name, grad in expected.items():
            error, size = np.linalg.norm(found[name].reshape(grad.shape) - grad), np.linalg.norm(grad)
            assert error <= tolerance * max(size, 1e-4 * whole), name  # gradients that nearly cancel are rounding


def require_the_twins(
    student: str, prediction: str, config: FinetuneConfig, prior_weight: float = 0.0, gamma: float = 0.0
) -> None:
    """Losses and gradients; of adapters these are down's and up's."""
    networks, params = architectures(student, prediction), parameters(student)
    trained = what_is_trained(config, networks)
    start, (batch, keys) = started(trained, params), batch_and_keys(prior_weight > 0)
    compiled = gradient(student, prediction, config, prior_weight, gamma)
    (loss, terms), grads = compiled(start, trained.frozen(params), batch, keys)

    twin = Twin(student)
    if config.adapter.rank:
        twin.adapt(config.adapter, in_pytorch(start))
    losses = twin.losses(prediction, drawn_rows(networks, batch, keys), prior_weight, gamma)
    losses["loss"].backward()
    assert terms.keys() == losses.keys()
    assert float(loss) == float(terms["loss"])
    for name, value in losses.items():
        assert float(terms[name]) == pytest.approx(value.item(), rel=TOLERANCE), name
    require_same_gradients(in_pytorch(grads), twin.gradients())


@pytest.mark.parametrize(
    ("student", "prediction"),
    [
        (ONE_STAGE, "v_prediction"),
        *(
            pytest.param(student, prediction, marks=slow)
            for student in ("bk_base", "bk_small", "bk_tiny")
            for prediction in ("epsilon", "v_prediction")
        ),
    ],
)
def test_prior_preservation(student: str, prediction: str) -> None:
    """All weights of both networks are trained."""
    require_the_twins(student, prediction, FULL, PRIOR_WEIGHT)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_without_class_images(prediction: str) -> None:
    require_the_twins(ONE_STAGE, prediction, FULL)


@pytest.mark.parametrize(
    ("student", "prediction", "modules", "gamma"),
    [
        (ONE_STAGE, "epsilon", LORA.modules, GAMMA),
        pytest.param("bk_base", "epsilon", LORA.modules, 0.0, marks=slow),
        pytest.param("bk_small", "v_prediction", LORA.modules, 0.0, marks=slow),
        pytest.param("bk_tiny", "epsilon", CONVOLUTIONS, 0.0, marks=slow),
        pytest.param("bk_tiny", "v_prediction", LORA.modules, 0.0, marks=slow),
    ],
)
def test_loras_are_trained_as_with_peft(student: str, prediction: str, modules: tuple[str, ...], gamma: float) -> None:
    require_the_twins(
        student, prediction, settings(adapter=dataclasses.replace(LORA, modules=modules)), PRIOR_WEIGHT, gamma
    )


def test_only_the_named_modules_are_trained() -> None:
    networks = architectures("bk_tiny", "epsilon")
    trained = what_is_trained(ONLY, networks)
    modules = dict(originals("bk_tiny")["unet"].named_modules())
    wanted = {f"{name}.weight" for name in modules if name.endswith(CROSS_ATTENTION)}
    shapes = trained.shapes()
    assert shapes.keys() == {"unet"}
    assert {names.torch_name(path) for path in trees.flatten(shapes["unet"])} == wanted
    assert len(wanted) == 2 * 9


@pytest.mark.parametrize("student", [ONE_STAGE, pytest.param("bk_tiny", marks=slow)])
def test_their_gradients_are_those_of_training_everything(student: str) -> None:
    params, (batch, keys) = parameters(student), batch_and_keys(prior=True)
    losses, found = [], []
    for config in (FULL, ONLY):
        trained = what_is_trained(config, architectures(student, "v_prediction"))
        compiled = gradient(student, "v_prediction", config, PRIOR_WEIGHT, 0.0)
        (loss, _), grads = compiled(started(trained, params), trained.frozen(params), batch, keys)
        losses.append(float(loss))
        found.append(in_pytorch(grads))
    whole, own = found
    assert losses[0] == pytest.approx(losses[1], rel=1e-6)
    require_same_gradients(own, {"unet": {name: whole["unet"][name] for name in own["unet"]}}, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction"])
def test_min_snr_weighs_every_image(prediction: str) -> None:
    require_the_twins(ONE_STAGE, prediction, FULL, PRIOR_WEIGHT, GAMMA)


# A rank at which some adapters are large enough to be split among devices; with this epsilon, gradients near zero don't
# decide signs.
SPLIT = settings(adapter=dataclasses.replace(LORA, rank=16, modules=("to_q", "to_v", "ff.net.0.proj")))
OPTIMIZER = OptimizerConfig(learning_rate=1e-2, ema_decay=0.0, epsilon=1e-3)


def lora_step(devices: int = 1, fsdp: int = 1) -> tuple[Trained, TrainStep, Mesh]:
    mesh = make_mesh(fsdp, jax.devices()[:devices])
    trained = what_is_trained(SPLIT, architectures(ONE_STAGE, "epsilon"))
    objective = make_objective(Problem(trained, PRIOR_WEIGHT), RESOLUTION, (1, 8))
    return trained, make_train_step(objective, OPTIMIZER, 7, mesh), mesh


def moments(state: TrainState) -> int:
    """Numbers in the optimiser's state."""
    return sum(leaf.size for leaf in jax.tree.leaves(state.opt_state) if leaf.ndim)


def test_only_adapters_have_moments() -> None:
    trained, step, _ = lora_step()
    wanted = 0
    for name, modules in originals(ONE_STAGE).items():
        ends = SPLIT.adapter.modules if name == "unet" else SPLIT.adapter.text_modules
        found = [module for key, module in modules.named_modules() if key.endswith(ends)]
        wanted += sum(trained.ranks[name] * sum(module.weight.shape) for module in found)
    assert trees.count(step.state.params) == wanted
    assert moments(step.state) == 2 * wanted
    assert {path.rpartition("/")[2] for path in trees.flatten(step.state.params)} == {"down", "up"}
    assert not jax.tree.leaves(step.state.ema)


def updated(devices: int, fsdp: int) -> tuple[TrainState, dict[str, float]]:
    """After an update of a LoRA, as numpy arrays, with the metrics; what is frozen stays as it is to the bit."""
    trained, step, mesh = lora_step(devices, fsdp)
    params = parameters(ONE_STAGE) | {"vae": tiny.random_tree(trained.frozen_shapes()["vae"], 5)}
    first = create_state(started(trained, params), make_optimizer(OPTIMIZER), averaged=False)
    own = trained.frozen(params)
    state, frozen = jax.device_put((first, own), jax.tree.map(lambda leaf: leaf.sharding, (step.state, step.frozen)))
    for tree in (state.params, state.opt_state, frozen):
        assert any(not leaf.sharding.is_fully_replicated for leaf in jax.tree.leaves(tree)) == (fsdp > 1)
    batch = jax.tree.map(lambda x: x[None], images(8, 0) | {PRIOR: images(8, 1)})
    state, metrics = step.update(state, frozen, batch_to_global(mesh, batch))
    require_equal(gather_to_host(frozen), own)
    return gather_to_host(state), {name: float(value) for name, value in metrics.items()}


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [2, 4])
def test_a_mesh_changes_no_update_of_a_lora(fsdp: int) -> None:
    (alone, expected), (on_mesh, metrics) = updated(1, 1), updated(8, fsdp)
    assert metrics == pytest.approx(expected, rel=1e-5)
    assert metrics["applied"] == 1
    trained = what_is_trained(SPLIT, architectures(ONE_STAGE, "epsilon"))
    start = trees.flatten(started(trained, parameters(ONE_STAGE)))
    ours, theirs = trees.flatten(on_mesh.params), trees.flatten(alone.params)
    assert ours.keys() == theirs.keys() == start.keys()
    for path, one in theirs.items():
        error, moved = np.linalg.norm(ours[path] - one), np.linalg.norm(one - start[path])
        assert error <= 1e-5 * np.linalg.norm(one), path
        assert error <= 1e-4 * moved, path
    assert moments(on_mesh) == moments(alone) == 2 * trees.count(on_mesh.params)
