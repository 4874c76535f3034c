"""The losses and the student's gradients against a PyTorch twin of the reference's rules; the update's arithmetic."""

import copy
import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from diffusers import UNet2DConditionModel
from torch.nn import functional

from bksdm_jax.base import trees
from bksdm_jax.base.precision import cast_frozen
from bksdm_jax.diffusion.schedule import TARGETS, add_noise
from bksdm_jax.formats import names
from bksdm_jax.formats.scheduler_json import schedule_from_diffusers
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.models.clip import CLIPTextConfig, CLIPTextEncoder
from bksdm_jax.models.unet import FEATURES, UNet, captured, example_inputs, parameter_shapes
from bksdm_jax.models.vae import VAE, VAEConfig
from bksdm_jax.pruning.presets import PRESETS
from bksdm_jax.pruning.removal import FeaturePair, plan_removal, removed_blocks
from bksdm_jax.pruning.weights import copy_weights, random_weights
from bksdm_jax.tasks.distill.losses import LossWeights, distillation_terms, min_snr_weight, shares, weighted_pairs
from bksdm_jax.tasks.distill.objective import (
    Augmentation,
    NoisyBatch,
    Problem,
    draw_noisy_batch,
    make_loss,
    make_train_step,
)
from bksdm_jax.training.sharding import batch_to_global, make_mesh, parameter_shardings
from bksdm_jax.training.state import OptimizerConfig, create_state, ema_decay, learning_rate, make_optimizer
from tests import surgery, tiny


class Twin:
    """Teacher and student in PyTorch, features caught with forward hooks as the reference does."""

    def __init__(self, preset: str, seed: int):
        self.teacher = tiny.randomize(UNet2DConditionModel(**tiny.V1), seed).requires_grad_(False)
        self.student = surgery.operate(self.teacher, **surgery.PAPER[preset]).requires_grad_(True)
        with torch.no_grad():  # a student that has moved away from its teacher
            for parameter in self.student.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        self.pairs = surgery.FEATURE_PAIRS[preset]
        self.caught: dict[str, dict[str, torch.Tensor]] = {"teacher": {}, "student": {}}
        for who, network, place in (("teacher", self.teacher, 0), ("student", self.student, 1)):
            modules = dict(network.named_modules())
            for pair in self.pairs:
                modules[pair[place]].register_forward_hook(self._catch(who, pair[place]))

    def _catch(self, who: str, name: str):
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            self.caught[who][name] = output[0] if isinstance(output, tuple) else output

        return hook

    def losses(self, noisy: torch.Tensor, t: torch.Tensor, target: torch.Tensor, text: torch.Tensor) -> dict:
        ours = self.student(noisy, t, text).sample
        theirs = self.teacher(noisy, t, text).sample
        task = functional.mse_loss(ours, target)
        output = functional.mse_loss(ours, theirs)
        feature = sum(functional.mse_loss(self.caught["student"][s], self.caught["teacher"][t]) for t, s in self.pairs)
        return {"loss_task": task, "loss_output": output, "loss_feature": feature, "loss": task + output + feature}


def torch_layout(x: jax.Array) -> torch.Tensor:
    return torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))


@pytest.mark.parametrize(
    "preset", ["bk_tiny", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bk_base", "bk_small"))]
)
def test_losses_and_gradients_match_the_reference(preset: str) -> None:
    twin = Twin(preset, int(np.random.default_rng().integers(2**31)))
    config = unet_from_diffusers(tiny.V1)
    plan = plan_removal(config, PRESETS[preset].removed)
    frozen = {"teacher": tiny.flax_params(twin.teacher, parameter_shapes(config))}
    twin.student.requires_grad_(False)
    student = tiny.flax_params(twin.student, parameter_shapes(plan.student))
    twin.student.requires_grad_(True)
    gradient = None
    for prediction in TARGETS:  # one compiled program serves both
        schedule = schedule_from_diffusers(tiny.scheduler(prediction).config)
        generator = np.random.default_rng()
        latents, noise = (jnp.asarray(generator.standard_normal((2, 8, 8, 4), np.float32)) for _ in range(2))
        t = np.array([40, 900], np.int32)
        alpha_bar = jnp.asarray(schedule.alphas_cumprod()[t], jnp.float32)
        context = generator.standard_normal((2, 9, tiny.CONTEXT), np.float32)
        noisy_batch = NoisyBatch(
            add_noise(latents, noise, alpha_bar),
            t,
            TARGETS[prediction](latents, noise, alpha_bar),
            {"context": context},
            alpha_bar,
        )
        if gradient is None:
            problem = Problem(plan, VAEConfig(), CLIPTextConfig(), schedule)
            gradient = jax.jit(jax.value_and_grad(make_loss(problem), has_aux=True))
        (_, terms), grads = gradient(student, frozen, noisy_batch)

        scheduler = tiny.scheduler(prediction)  # the noise and the target once more, by Diffusers
        noisy = scheduler.add_noise(torch_layout(latents), torch_layout(noise), torch.from_numpy(t).long())
        target = torch_layout(noise)
        if prediction == "v_prediction":
            target = scheduler.get_velocity(torch_layout(latents), target, torch.from_numpy(t).long())
        twin.student.zero_grad()
        losses = twin.losses(noisy, torch.from_numpy(t), target, torch.from_numpy(context))
        losses["loss"].backward()
        for name, value in losses.items():
            assert float(terms[name]) == pytest.approx(value.item(), rel=1e-4), name
        require_same_gradients(grads, twin.student)


def require_same_gradients(grads: Any, module: torch.nn.Module) -> None:
    expected = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    ours = {names.torch_name(path): names.to_torch(path, np.asarray(g)) for path, g in trees.flatten(grads).items()}
    assert ours.keys() == expected.keys()
    whole = np.sqrt(sum((g**2).sum() for g in expected.values()))
    for name, grad in expected.items():
        error, size = np.linalg.norm(ours[name] - grad), np.linalg.norm(grad)
        assert error <= 1e-4 * max(size, 1e-4 * whole), name  # gradients that nearly cancel carry rounding only


def test_without_distillation_the_teacher_is_not_run() -> None:
    plan = plan_removal(unet_from_diffusers(tiny.MICRO), removed_blocks(tiny.MICRO_STUDENT))
    problem = Problem(plan, VAEConfig(), CLIPTextConfig(), tiny_schedule(), LossWeights(output=0.0, feature=0.0))
    params = random_weights(plan.student, 0)
    noisy_batch = NoisyBatch(
        np.zeros((1, 4, 4, 4), np.float32),
        np.zeros(1, np.int32),
        np.ones((1, 4, 4, 4), np.float32),
        np.zeros((1, 3, tiny.CONTEXT), np.float32),
        np.full(1, 0.5, np.float32),
    )
    _, terms = jax.eval_shape(make_loss(problem), params, {}, noisy_batch)
    assert set(terms) == {"loss", "loss_task"}


def test_min_snr_weighs_images_as_the_paper_and_diffusers_do() -> None:
    from diffusers.training_utils import compute_snr

    t = np.array([0, 10, 300, 700, 999])
    for prediction in TARGETS:
        alpha_bar = tiny_schedule(prediction).alphas_cumprod()[t]
        snr = compute_snr(tiny.scheduler(prediction), torch.from_numpy(t)).numpy()
        expected = np.minimum(snr, 5.0) / (snr + (prediction == "v_prediction"))  # as Diffusers' training scripts
        weight = min_snr_weight(5.0, prediction, jnp.asarray(alpha_bar, jnp.float32))
        np.testing.assert_allclose(weight, expected, rtol=1e-4)
    generator = np.random.default_rng()
    ours, target = (jnp.asarray(generator.standard_normal((5, 4, 4, 2)), jnp.float32) for _ in range(2))
    terms = distillation_terms(LossWeights(1, 0, 0), target, ours, {}, image_weights=weight)
    each = np.square(np.asarray(ours) - np.asarray(target)).mean(axis=(1, 2, 3))
    assert float(terms["loss"]) == pytest.approx(float((np.asarray(weight) * each).mean()), rel=1e-5)


def test_learning_rate_warms_up_and_falls() -> None:
    rate = learning_rate(OptimizerConfig(learning_rate=2.0, warmup_steps=10, cosine_steps=110))
    assert [float(rate(n)) for n in (0, 5, 10, 60, 110)] == pytest.approx([0.0, 1.0, 2.0, 1.0, 0.0], abs=1e-6)
    constant = learning_rate(OptimizerConfig(learning_rate=2.0))
    assert [float(constant(n)) for n in (0, 10**6)] == [2.0, 2.0]


def tiny_schedule(prediction: str = "epsilon"):
    return schedule_from_diffusers(tiny.scheduler(prediction).config)


class Micro:
    """The smallest whole problem: 16-pixel images, 8x8 latents, two U-Net stages."""

    def __init__(self) -> None:
        plan = plan_removal(unet_from_diffusers(tiny.MICRO | {"layers_per_block": 1}), ("mid_block",))
        vae = VAEConfig(widths=(32, 32), layers_per_block=1)
        text = CLIPTextConfig(50, tiny.CONTEXT, 32, 1, 2, max_length=8)
        self.problem = Problem(plan, vae, text, tiny_schedule())
        images, tokens = jnp.zeros((1, 16, 16, 3)), jnp.zeros((1, 8), jnp.int32)
        teacher = random_weights(plan.teacher, 1)
        self.frozen = {
            "teacher": teacher,
            "vae": jax.jit(VAE(vae).init)(jax.random.key(2), images)["params"],
            "text_encoder": jax.jit(CLIPTextEncoder(text).init)(jax.random.key(3), tokens)["params"],
        }
        self.student = copy_weights(plan, teacher)
        self.optimizer = make_optimizer(OptimizerConfig())
        generator = np.random.default_rng(0)
        self.images = generator.integers(0, 256, (8, 16, 16, 3), np.uint8)
        self.tokens = generator.integers(0, 50, (8, 8), np.int32)

    def batch(self, parts: int) -> dict[str, np.ndarray]:
        return {
            "images": self.images.reshape(parts, 8 // parts, 16, 16, 3),
            "tokens": self.tokens.reshape(parts, 8 // parts, 8),
        }

    def run(self, parts: int, devices: int, fsdp: int = 1, steps: int = 3) -> tuple[Any, list[dict[str, float]]]:
        mesh = make_mesh(fsdp, jax.devices()[:devices])
        state = create_state(jax.tree.map(jnp.asarray, self.student), self.optimizer)
        state = jax.device_put(state, parameter_shardings(mesh, state))
        frozen = jax.device_put(self.frozen, parameter_shardings(mesh, self.frozen))
        step = jax.jit(make_train_step(self.problem, self.optimizer, 0.9999, seed=7), donate_argnums=0)
        history = []
        for _ in range(steps):
            state, metrics = step(state, frozen, batch_to_global(mesh, self.batch(parts)))
            history.append({name: float(value) for name, value in metrics.items()})
        return jax.tree.map(np.asarray, state), history


@pytest.fixture(scope="module")
def micro() -> Micro:
    return Micro()


@pytest.fixture(scope="module")
def plain(micro: Micro) -> tuple[Any, list[dict[str, float]]]:
    """One device, no accumulation."""
    return micro.run(parts=1, devices=1)


def test_accumulation_changes_nothing(micro: Micro, plain: Any) -> None:
    state, history = micro.run(parts=4, devices=1)
    for ours, theirs in zip(history, plain[1], strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-5), name
    # AdamW divides a gradient by its own size, so where one is all rounding an update may differ by the learning rate.
    for ours, theirs in zip(jax.tree.leaves(state.params), jax.tree.leaves(plain[0].params), strict=True):
        assert np.abs(ours - theirs).max() <= 3 * 2 * 5e-5
        assert np.mean(np.abs(ours - theirs)) <= 1e-5 * max(np.mean(np.abs(theirs)), 1e-3)


@pytest.fixture(scope="module")
def twenty(micro: Micro) -> list[dict[str, float]]:
    """Losses of twenty updates on one device."""
    return micro.run(parts=1, devices=1, steps=20)[1]


@pytest.mark.slow
@pytest.mark.parametrize("fsdp", [1, 2, 8], ids=["8x1", "4x2", "1x8"])
def test_meshes_change_no_loss(micro: Micro, twenty: list[dict[str, float]], fsdp: int) -> None:
    for ours, theirs in zip(micro.run(1, 8, fsdp, 20)[1], twenty, strict=True):
        for name, value in theirs.items():
            assert ours[name] == pytest.approx(value, rel=1e-5), name


def lowered_gradient(micro: Micro, remat: str) -> Any:
    """The gradient's program, and what it is called with."""
    keys = jax.random.split(jax.random.key(0), 2)
    noisy = draw_noisy_batch(micro.problem, jnp.float32, micro.frozen, micro.images[:2], micro.tokens[:2], keys)
    loss = make_loss(dataclasses.replace(micro.problem, remat=remat))
    program = jax.jit(jax.value_and_grad(loss, has_aux=True))
    return program.lower(micro.student, micro.frozen, noisy), (micro.student, micro.frozen, noisy)


@pytest.mark.slow
def test_what_is_computed_anew_changes_no_gradient(micro: Micro) -> None:
    plain, arguments = lowered_gradient(micro, "none")
    (expected, _), expected_grads = plain.compile()(*arguments)
    forward = jax.jit(UNet(micro.problem.plan.student).apply).lower({"params": micro.student}, *inputs_of(arguments))
    more = {}
    for remat in ("products", "attention", "blocks", "full"):
        again, _ = lowered_gradient(micro, remat)
        (loss, _), grads = again.compile()(*arguments)
        assert float(loss) == pytest.approx(float(expected), rel=1e-6)
        for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(jnp.abs(theirs).max()) + 1e-8)
        flops = again.cost_analysis()["flops"] - plain.cost_analysis()["flops"]
        more[remat] = flops / forward.cost_analysis()["flops"]
    assert 0 < more["products"] < more["attention"] < more["blocks"] < more["full"] <= 1, more


def inputs_of(arguments: Any) -> tuple[jax.Array, ...]:
    noisy = arguments[2]
    return noisy.noisy, noisy.timesteps, noisy.conditioning


def test_bfloat16_losses_follow_float32(micro: Micro) -> None:
    keys = jax.random.split(jax.random.key(0), 8)
    noisy_batch = draw_noisy_batch(micro.problem, jnp.float32, micro.frozen, micro.images, micro.tokens, keys)
    exact, _ = jax.jit(make_loss(micro.problem))(micro.student, micro.frozen, noisy_batch)
    gradient = jax.value_and_grad(make_loss(micro.problem, jnp.bfloat16), has_aux=True)
    with jax.numpy_dtype_promotion("standard"):  # the gradient of JAX's own attention relies on it
        (short, terms), grads = jax.jit(gradient)(micro.student, cast_frozen(micro.frozen, jnp.bfloat16), noisy_batch)
    assert float(short) == pytest.approx(float(exact), rel=0.05)
    assert {leaf.dtype for leaf in jax.tree.leaves((terms, grads))} == {np.dtype(np.float32)}
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))


def test_the_first_update_is_pytorchs_adamw(micro: Micro) -> None:
    """Clipping, AdamW and the moving average, redone by PyTorch on our gradients."""
    state = create_state(jax.tree.map(jnp.asarray, micro.student), micro.optimizer)
    key = jax.random.fold_in(jax.random.fold_in(jax.random.key(7), 2**32 - 1), 0)
    keys = jax.vmap(lambda i: jax.random.fold_in(key, i))(jnp.arange(8))
    loss = make_loss(micro.problem)

    def gradient(params: Any) -> Any:
        noisy_batch = draw_noisy_batch(micro.problem, jnp.float32, micro.frozen, micro.images, micro.tokens, keys)
        return jax.grad(loss, has_aux=True)(params, micro.frozen, noisy_batch)[0]

    grads = jax.tree.map(np.array, jax.jit(gradient)(state.params))
    after, _ = micro.run(parts=1, devices=1, steps=1)
    parameters = [torch.nn.Parameter(torch.from_numpy(np.array(x))) for x in jax.tree.leaves(state.params)]
    for parameter, grad in zip(parameters, jax.tree.leaves(grads), strict=True):
        parameter.grad = torch.from_numpy(grad)
    torch.nn.utils.clip_grad_norm_(parameters, 1.0)
    torch.optim.AdamW(parameters, lr=5e-5, betas=(0.9, 0.999), weight_decay=1e-2, eps=1e-8).step()
    before = jax.tree.leaves(state.params)
    for old, ours, theirs in zip(before, jax.tree.leaves(after.params), parameters, strict=True):
        moved, expected = ours - np.asarray(old), theirs.detach().numpy() - np.asarray(old)
        assert np.linalg.norm(moved - expected) <= 2e-2 * np.linalg.norm(expected) + 1e-9
    for raw, averaged in zip(jax.tree.leaves(after.params), jax.tree.leaves(after.ema), strict=True):
        np.testing.assert_array_equal(raw, averaged)  # the first update copies


def test_ema_decay_follows_the_reference() -> None:
    from diffusers.training_utils import EMAModel

    theirs = EMAModel([torch.nn.Parameter(torch.zeros(1))], decay=0.9999)
    for done in (0, 1, 2, 10, 1000, 10**6):
        # The reference counts the update that is under way; Diffusers starts its rule one update later.
        expected = theirs.get_decay(done + 1)
        assert float(ema_decay(jnp.asarray(done), 0.9999)) == pytest.approx(expected, rel=1e-6)


def test_timesteps_cover_all_noise_levels(micro: Micro) -> None:
    keys = jax.random.split(jax.random.key(0), 8)
    noisy_batch = draw_noisy_batch(micro.problem, jnp.float32, micro.frozen, micro.images, micro.tokens, keys)
    assert noisy_batch.noisy.shape == (8, 8, 8, 4)
    many = jax.vmap(lambda key: jax.random.randint(jax.random.split(key, 3)[2], (), 0, 1000))(
        jax.random.split(jax.random.key(1), 4000)
    )
    assert (int(many.min()), int(many.max())) < (10, 1000)
    assert int(many.max()) > 990


def test_key_of_an_image_is_its_own(micro: Micro) -> None:
    keys = jax.random.split(jax.random.key(0), 8)
    whole = draw_noisy_batch(micro.problem, jnp.float32, micro.frozen, micro.images, micro.tokens, keys)
    part = draw_noisy_batch(micro.problem, jnp.float32, micro.frozen, micro.images[3:4], micro.tokens[3:4], keys[3:4])
    np.testing.assert_allclose(whole.noisy[3:4], part.noisy, atol=1e-5)
    assert int(whole.timesteps[3]) == int(part.timesteps[0])
    clone = copy.copy(micro.images)
    clone[:] = clone[:1]  # equal images, other noise
    same = draw_noisy_batch(micro.problem, jnp.float32, micro.frozen, clone, micro.tokens, keys)
    assert not np.allclose(same.noisy[0], same.noisy[1])


def test_self_attention_features_are_sown_by_both(micro: Micro) -> None:
    plan = micro.problem.plan
    shapes = []
    for config in (plan.teacher, plan.student):
        inputs = example_inputs(config, 2, 8)
        _, sown = jax.eval_shape(
            lambda params, *inputs, config=config: UNet(config).apply({"params": params}, *inputs, mutable=[FEATURES]),
            parameter_shapes(config),
            *inputs,
        )
        shapes.append({name: leaf.shape for name, leaf in captured(sown).items()})
    pairs = weighted_pairs(plan, "self_attention", ())
    assert len(pairs) == sum(".attentions." in name for name, _ in plan.blocks) > 2
    for pair, weight in pairs:
        assert shapes[0][pair.teacher] == shapes[1][pair.student]
        assert weight == 1


def test_weights_scale_single_features() -> None:
    ours, theirs = ({"a": jnp.full((2, 2), value), "b": jnp.full((2, 2), 2 * value)} for value in (0.0, 1.0))
    pairs = ((FeaturePair("a", "a"), 3.0), (FeaturePair("b", "b"), 0.5))
    zeros = jnp.zeros((2, 2))
    terms = distillation_terms(LossWeights(0.0, 0.0, 2.0), zeros, zeros, ours, zeros, theirs, pairs)
    assert (float(terms["feature/a"]), float(terms["feature/b"])) == (1.0, 4.0)
    assert float(terms["loss_feature"]) == 3 * 1 + 0.5 * 4
    assert float(terms["loss"]) == 2 * 5
    found = shares(pairs, {name: float(value) for name, value in terms.items()})
    assert found == {"share/a": 0.6, "share/b": 0.4}


def test_captions_are_dropped_and_noise_is_offset(micro: Micro) -> None:
    keys = jax.random.split(jax.random.key(5), 8)
    empty = tuple(range(8))

    def draw(**changes: Any) -> NoisyBatch:
        problem = dataclasses.replace(micro.problem, augmentation=Augmentation(**changes))
        return draw_noisy_batch(problem, jnp.float32, micro.frozen, micro.images, micro.tokens, keys)

    plain, all_dropped = draw(), draw(caption_dropout=1.0, empty_tokens=empty)
    some = draw(caption_dropout=0.5, empty_tokens=empty)
    np.testing.assert_array_equal(plain.noisy, all_dropped.noisy)  # nothing else changes
    np.testing.assert_array_equal(
        all_dropped.conditioning["context"],
        jnp.broadcast_to(all_dropped.conditioning["context"][:1], plain.conditioning["context"].shape),
    )
    gone = np.array(
        [
            np.array_equal(*pair)
            for pair in zip(some.conditioning["context"], all_dropped.conditioning["context"], strict=True)
        ]
    )
    kept = np.array(
        [
            np.array_equal(*pair)
            for pair in zip(some.conditioning["context"], plain.conditioning["context"], strict=True)
        ]
    )
    assert (gone != kept).all()
    assert 0 < gone.sum() < 8
    offset = np.asarray(draw(noise_offset=0.5).target - plain.target)  # the target is the noise
    np.testing.assert_allclose(offset, np.broadcast_to(offset[:, :1, :1], offset.shape), atol=1e-6)
    assert 0.3 < offset[:, 0, 0].std() < 0.75
    assert len(np.unique(np.round(offset[:, 0, 0], 6))) == offset[:, 0, 0].size
