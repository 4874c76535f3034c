"""One optimiser update, whatever it minimises: AdamW, moving average, accumulation, meshes."""

import dataclasses
import itertools
import re
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bksdm_jax.training.adamw import learning_rate, make_optimizer, stepped
from bksdm_jax.training.sharding import batch_to_global, device_put_global, make_mesh
from bksdm_jax.training.state import OptimizerConfig, TrainState, create_state, ema_decay, state_norms
from bksdm_jax.training.train_step import Objective, make_train_step, make_update

WIDTH, IMAGES, SEED = 64, 8, 7  # a kernel of WIDTH x WIDTH is just large enough to be split among devices
CONFIG = OptimizerConfig(learning_rate=1e-2, clip_norm=0.05)


def network() -> dict[str, dict[str, np.ndarray]]:
    generator = np.random.default_rng(0)

    def layer() -> dict[str, np.ndarray]:
        kernel = generator.standard_normal((WIDTH, WIDTH)) / WIDTH**0.5
        return {"kernel": kernel.astype(np.float32), "bias": generator.standard_normal(WIDTH).astype(np.float32)}

    return {"first": layer(), "second": layer()}


def loss(params: Any, ema: Any, frozen: Any, batch: Any, keys: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
    """Of two layers on noisy inputs; `ema_gap` is how far the weights are from their moving average."""
    noise = jax.vmap(lambda key: jax.random.normal(key, (WIDTH,)))(keys)
    hidden = jnp.tanh((batch["x"] + noise) @ params["first"]["kernel"] + params["first"]["bias"])
    out = hidden @ params["second"]["kernel"] + params["second"]["bias"]
    total = jnp.mean(jnp.square(out - batch["x"] @ frozen["wanted"]["kernel"]))
    gap = jnp.mean(jnp.square(params["first"]["kernel"] - ema["first"]["kernel"]))
    return total, {"loss": total, "ema_gap": gap}


X = np.random.default_rng(1).standard_normal((IMAGES, WIDTH)).astype(np.float32)
FROZEN = {"wanted": {"kernel": np.random.default_rng(2).standard_normal((WIDTH, WIDTH)).astype(np.float32)}}


def shapes_of(tree: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype), tree)


def run(
    parts: int = 1, devices: int = 1, fsdp: int = 1, steps: int = 3, ema: float = CONFIG.ema_decay
) -> list[tuple[TrainState, dict[str, float]]]:
    """States and metrics: those before the first update (without metrics), then those after each."""
    mesh, params = make_mesh(fsdp, jax.devices()[:devices]), network()
    config = dataclasses.replace(CONFIG, ema_decay=ema)
    batch = {"x": X.reshape(parts, IMAGES // parts, WIDTH)}
    objective = Objective(loss, *map(shapes_of, (params, FROZEN, batch)))
    step = make_train_step(objective, config, SEED, mesh)
    shardings = jax.tree.map(lambda leaf: leaf.sharding, (step.state, step.frozen))
    first = create_state(jax.tree.map(jnp.asarray, params), make_optimizer(config), ema > 0)
    state, frozen = jax.device_put((first, FROZEN), shardings)
    history = [(jax.tree.map(np.asarray, state), {})]
    for _ in range(steps):
        state, metrics = step.update(state, frozen, batch_to_global(mesh, batch))
        history.append((jax.tree.map(np.asarray, state), {name: float(value) for name, value in metrics.items()}))
    return history


@pytest.fixture(scope="module")
def plain() -> list[tuple[TrainState, dict[str, float]]]:
    """One device, no accumulation."""
    return run()


def require_same_history(found: Any, expected: Any) -> None:
    for (ours, metrics), (theirs, wanted) in zip(found, expected, strict=True):
        assert metrics == pytest.approx(wanted, rel=1e-5, abs=1e-9)
        for one, other in zip(jax.tree.leaves(ours.params), jax.tree.leaves(theirs.params), strict=True):
            np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("parts", [2, 8])
def test_accumulation_changes_nothing(plain: Any, parts: int) -> None:
    require_same_history(run(parts), plain)


@pytest.mark.parametrize("fsdp", [1, 2, 8], ids=["8x1", "4x2", "1x8"])
def test_meshes_change_nothing(plain: Any, fsdp: int) -> None:
    require_same_history(run(1, 8, fsdp), plain)


def test_large_leaves_are_in_several_shards() -> None:
    mesh = make_mesh(4)
    batch = {"x": X[None]}
    step = make_train_step(Objective(loss, *map(shapes_of, (network(), FROZEN, batch))), CONFIG, SEED, mesh)
    params = device_put_global(network(), jax.tree.map(lambda leaf: leaf.sharding, step.state.params))
    kernel, bias = params["first"]["kernel"], params["first"]["bias"]
    assert len({str(shard.index) for shard in kernel.addressable_shards}) == 4
    assert {shard.data.size for shard in kernel.addressable_shards} == {WIDTH * WIDTH // 4}
    assert {shard.data.size for shard in bias.addressable_shards} == {WIDTH}
    moments = [leaf for leaf in jax.tree.leaves(step.state.opt_state) if leaf.shape == kernel.shape]
    assert [leaf.sharding for leaf in moments] == [kernel.sharding] * 4
    images = batch_to_global(mesh, batch)["x"].addressable_shards
    assert len({str(shard.index) for shard in images}) == 8


def test_updates_are_pytorchs_adamw(plain: Any) -> None:
    """Clipping, AdamW and the moving average, redone by PyTorch and Diffusers' rule on our gradients."""
    from diffusers.training_utils import EMAModel

    gradient = jax.jit(jax.grad(loss, has_aux=True))
    leaves = [torch.nn.Parameter(torch.from_numpy(leaf.copy())) for leaf in jax.tree.leaves(network())]
    options = {"lr": CONFIG.learning_rate, "betas": (0.9, 0.999), "weight_decay": 1e-2, "eps": 1e-8}
    optimizer = torch.optim.AdamW(leaves, **options)
    average, rule = jax.tree.leaves(network()), EMAModel(leaves, decay=CONFIG.ema_decay)
    for done, ((before, _), (after, metrics)) in enumerate(itertools.pairwise(plain)):
        key = jax.random.fold_in(jax.random.fold_in(jax.random.key(SEED), 2**32 - 1), done)
        keys = jax.vmap(lambda i, key=key: jax.random.fold_in(key, i))(jnp.arange(IMAGES))
        grads, _ = gradient(before.params, before.ema, FROZEN, {"x": X}, keys)
        for leaf, grad in zip(leaves, jax.tree.leaves(grads), strict=True):
            leaf.grad = torch.from_numpy(np.array(grad))
        norm = torch.nn.utils.clip_grad_norm_(leaves, CONFIG.clip_norm)
        assert norm > 2 * CONFIG.clip_norm
        assert metrics["grad_norm"] == pytest.approx(float(norm), rel=1e-5)
        optimizer.step()
        decay = rule.get_decay(done + 1)
        average = [decay * e + (1 - decay) * p.detach().numpy() for e, p in zip(average, leaves, strict=True)]
        for ours, theirs in zip(jax.tree.leaves(after.params), leaves, strict=True):
            np.testing.assert_allclose(ours, theirs.detach().numpy(), rtol=1e-4, atol=1e-5)
        for ours, theirs in zip(jax.tree.leaves(after.ema), average, strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5)


def test_ema_decay_follows_the_reference() -> None:
    from diffusers.training_utils import EMAModel

    theirs = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.9999)
    for done in (0, 1, 2, 10, 1000, 10**6):
        # The reference counts the update that is under way; Diffusers starts its rule one update later.
        expected = theirs.get_decay(done + 1)
        assert float(ema_decay(jnp.asarray(done), 0.9999)) == pytest.approx(expected, rel=1e-6)


def test_without_a_moving_average_the_weights_are_the_same(plain: Any) -> None:
    (_, _), (state, metrics) = run(steps=1, ema=0.0)
    whole, told = plain[1]
    assert state.ema == {}
    assert set(told) - set(metrics) == {"ema_decay"}
    assert set(state_norms(state, CONFIG)) == {"update_norm"}
    for ours, theirs in zip(
        jax.tree.leaves((state.params, state.average)), jax.tree.leaves((whole.params,) * 2), strict=True
    ):
        assert np.array_equal(ours, theirs)


def flat(tree: Any) -> np.ndarray:
    return np.concatenate([leaf.ravel() for leaf in jax.tree.leaves(tree)]).astype(np.float64)


def test_norms_are_those_of_the_states(plain: Any) -> None:
    (first, _), *_, (before, _), (after, _) = plain
    found = state_norms(after, CONFIG)
    params = flat(after.params)
    step, distance = np.linalg.norm(params - flat(before.params)), np.linalg.norm(flat(after.ema) - params)
    assert float(found["update_norm"]) == pytest.approx(step, rel=1e-3)  # the parameters are rounded
    assert float(found["ema_distance"]) == pytest.approx(distance / np.linalg.norm(params), rel=1e-5)
    assert {name: float(norm) for name, norm in state_norms(first, CONFIG).items()} == {
        "update_norm": 0,
        "ema_distance": 0,
    }


def test_the_loss_sees_the_moving_average(plain: Any) -> None:
    gaps = [metrics["ema_gap"] for _, metrics in plain[1:]]
    assert gaps[:2] == [0, 0]  # the first update copies
    state, _ = plain[2]
    expected = np.mean(np.square(state.params["first"]["kernel"] - state.ema["first"]["kernel"]))
    assert gaps[2] > 0
    assert gaps[2] == pytest.approx(expected, rel=1e-4)


@pytest.mark.parametrize(("warmup", "cosine"), [(0, 0), (10, 0), (0, 110), (10, 110), (1, 2), (10, 10), (10, 5)])
def test_learning_rates_are_a_ramp_and_a_half_cosine(warmup: int, cosine: int) -> None:
    rate = learning_rate(OptimizerConfig(learning_rate=2.0, warmup_steps=warmup, cosine_steps=cosine))
    for done in (0, 1, 5, 9, 10, 11, 60, 109, 110, 10**6):
        expected = 2.0
        if cosine:
            passed = np.clip((done - warmup) / max(cosine - warmup, 1), 0, 1)
            expected = (1 + np.cos(np.pi * passed)).item()
        if done < warmup:
            expected = 2.0 * done / warmup
        assert float(rate(done)) == pytest.approx(expected, abs=1e-6), done


def test_steps_are_optaxs_and_their_rate_that_of_the_update() -> None:
    """A warm-up of five begins at rate zero: the first update moves nothing. One that isn't applied changes nothing."""
    config = dataclasses.replace(CONFIG, warmup_steps=5, weight_decay=0.1)
    optimizer, params = make_optimizer(config), {"x": jnp.array([1.0, -2.0, 3.0])}
    opt_state, moved = optimizer.init(params), []
    for gradient in (0.1, -0.2, 0.05):
        grads, clip, decay = {"x": jnp.full(3, gradient)}, jnp.float32(0.5), jnp.float32(0.9)
        with jax.numpy_dtype_promotion("standard"):
            clipped = jax.tree.map(lambda gradient, clip=clip: gradient * clip, grads)
            updates, wanted = optimizer.update(clipped, opt_state, params)
        given = grads, params, params, opt_state
        kept = stepped(jnp.bool(False), clip, decay, *given, config)
        assert all(map(np.array_equal, jax.tree.leaves(kept), jax.tree.leaves(given[1:])))
        new, average, opt_state = stepped(jnp.bool(True), clip, decay, *given, config)
        assert jax.tree.structure(opt_state) == jax.tree.structure(wanted)
        for ours, theirs in zip(jax.tree.leaves(opt_state), jax.tree.leaves(wanted), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-6)
        np.testing.assert_allclose(new["x"], params["x"] + updates["x"], rtol=1e-6)
        np.testing.assert_allclose(average["x"], 0.9 * params["x"] + 0.1 * new["x"], rtol=1e-6)
        moved.append(float(jnp.abs(new["x"] - params["x"]).max()))
        params = new
    assert moved[0] == 0
    assert min(moved[1:]) > 0


def test_norms_follow_the_schedule_of_the_rate() -> None:
    config = dataclasses.replace(CONFIG, warmup_steps=2, cosine_steps=9, weight_decay=0.1)
    params = jax.tree.map(jnp.asarray, network())
    optimizer = make_optimizer(config)
    state = create_state(params, optimizer)
    for _ in range(4):
        with jax.numpy_dtype_promotion("standard"):
            updates, opt_state = optimizer.update(params, state.opt_state, state.params)
        params = jax.tree.map(jnp.add, state.params, updates)
        state = state.replace(params=params, opt_state=opt_state)
        expected = np.linalg.norm(flat(updates))
        assert float(state_norms(state, config)["update_norm"]) == pytest.approx(expected, rel=5e-3, abs=1e-12)


def test_the_state_is_written_in_place() -> None:
    """Nothing of a kernel's shape is copied."""

    def loss(params: Any, ema: Any, frozen: Any, batch: Any, keys: Any) -> tuple[jax.Array, dict[str, jax.Array]]:
        total = jnp.square(batch["x"] @ params["kernel"]).mean()
        return total, {"loss": total}

    state = create_state({"kernel": jnp.ones((64, 48))}, make_optimizer(CONFIG))
    update = jax.jit(make_update(loss, CONFIG, 0), donate_argnums=0)
    text = update.lower(state, {}, {"x": jnp.ones((1, 8, 64))}).compile().as_text()
    assert "f32[64,48]" in text
    assert not re.findall(r"= f32\[64,48\]\S* copy\(", text)
