"""The losses and the student's gradients against a PyTorch twin of the reference's rules, and single terms."""

import dataclasses
from collections.abc import Sequence
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
from bksdm_jax.models.unet import FEATURES, UNet, captured, example_inputs, parameter_shapes
from bksdm_jax.pruning.presets import PRESETS
from bksdm_jax.pruning.removal import FeaturePair, RemovalPlan, plan_removal
from bksdm_jax.tasks.distill.config import LossWeights
from bksdm_jax.tasks.distill.features import shares, weighted_pairs
from bksdm_jax.tasks.distill.losses import distillation_terms
from bksdm_jax.tasks.distill.objective import make_loss
from bksdm_jax.tasks.losses import min_snr_weight
from bksdm_jax.tasks.noise import NoisyBatch
from tests import micro, surgery, tiny


class Twin:
    """Teacher and student in PyTorch, features caught with forward hooks as the reference does."""

    def __init__(
        self, teacher: UNet2DConditionModel, student: UNet2DConditionModel, pairs: Sequence[tuple[str, str]]
    ) -> None:
        """`pairs`: names of features in teacher and student."""
        self.teacher, self.student = teacher.requires_grad_(False), student.requires_grad_(False)
        with torch.no_grad():  # a student that has moved away from its teacher
            for parameter in self.student.parameters():
                parameter.add_(0.05 * torch.randn_like(parameter))
        self.pairs = pairs
        self.caught: dict[str, dict[str, torch.Tensor]] = {"teacher": {}, "student": {}}
        for who, network, side in (("teacher", self.teacher, 0), ("student", self.student, 1)):
            modules = dict(network.named_modules())
            for pair in self.pairs:
                modules[pair[side]].register_forward_hook(self._catch(who, pair[side]))

    def _catch(self, who: str, name: str):
        def hook(module: torch.nn.Module, inputs: Any, output: Any) -> None:
            self.caught[who][name] = output[0] if isinstance(output, tuple) else output

        return hook

    def losses(self, noisy: torch.Tensor, t: torch.Tensor, target: torch.Tensor, text: torch.Tensor) -> dict:
        """Every term; afterwards the student's parameters have the gradients of their sum."""
        self.student.requires_grad_(True)
        self.student.zero_grad()
        ours = self.student(noisy, t, text).sample
        theirs = self.teacher(noisy, t, text).sample
        task = functional.mse_loss(ours, target)
        output = functional.mse_loss(ours, theirs)
        feature = sum(functional.mse_loss(self.caught["student"][s], self.caught["teacher"][t]) for t, s in self.pairs)
        total = task + output + feature
        total.backward()
        return {"loss_task": task, "loss_output": output, "loss_feature": feature, "loss": total}


def require_the_twins_losses(twin: Twin, plan: RemovalPlan) -> None:
    """Losses and gradients for noise and for velocity, on one compiled program."""
    frozen = {"teacher": tiny.flax_params(twin.teacher, parameter_shapes(plan.teacher))}
    student = tiny.flax_params(twin.student, parameter_shapes(plan.student))
    gradient = micro.gradient(plan)
    for prediction in TARGETS:
        schedule = schedule_from_diffusers(tiny.scheduler(prediction).config)
        generator = np.random.default_rng()
        latents, noise = (jnp.asarray(generator.standard_normal((2, 8, 8, 4), np.float32)) for _ in range(2))
        t = np.array([40, 900], np.int32)
        alpha_bar = jnp.asarray(schedule.alphas_cumprod()[t], jnp.float32)
        context = generator.standard_normal((2, 9, tiny.CONTEXT), np.float32)
        target = TARGETS[prediction](latents, noise, alpha_bar)
        noisy_batch = NoisyBatch(add_noise(latents, noise, alpha_bar), t, target, {"context": context}, alpha_bar)
        (_, terms), grads = gradient(student, frozen, noisy_batch)

        scheduler = tiny.scheduler(prediction)  # the noise and the target once more, by Diffusers
        noisy = scheduler.add_noise(torch_layout(latents), torch_layout(noise), torch.from_numpy(t).long())
        target = torch_layout(noise)
        if prediction == "v_prediction":
            target = scheduler.get_velocity(torch_layout(latents), target, torch.from_numpy(t).long())
        elif prediction == "sample":
            target = torch_layout(latents)
        losses = twin.losses(noisy, torch.from_numpy(t), target, torch.from_numpy(context))
        for name, value in losses.items():
            assert float(terms[name]) == pytest.approx(value.item(), rel=1e-4), name
        require_same_gradients(grads, twin.student)


def torch_layout(x: jax.Array) -> torch.Tensor:
    return torch.from_numpy(np.array(x).transpose(0, 3, 1, 2))


def require_same_gradients(grads: Any, module: torch.nn.Module) -> None:
    expected = {name: parameter.grad.numpy() for name, parameter in module.named_parameters()}
    ours = {names.torch_name(path): names.to_torch(path, np.asarray(g)) for path, g in trees.flatten(grads).items()}
    assert ours.keys() == expected.keys()
    whole = np.sqrt(sum((g**2).sum() for g in expected.values()))
    for name, grad in expected.items():
        error, size = np.linalg.norm(ours[name] - grad), np.linalg.norm(grad)
        assert error <= 1e-4 * max(size, 1e-4 * whole), name  # gradients that nearly cancel carry rounding only


def fresh(config: dict[str, Any]) -> UNet2DConditionModel:
    return tiny.randomize(UNet2DConditionModel(**config), int(np.random.default_rng().integers(2**31)))


def test_losses_and_gradients_match_the_reference() -> None:
    """On two stages, from whose teacher the lowest is taken, so that one feature is a projection inside a stage."""
    teacher = fresh(micro.UNET)
    student = micro.one_stage(teacher)
    pairs = [("down_blocks.0.attentions.1.proj_out", "down_blocks.0.attentions.0.proj_out")]
    pairs += [("up_blocks.1", "up_blocks.0")]
    plan = micro.plan(micro.ONE_STAGE)
    assert [(pair.teacher, pair.student) for pair in plan.features] == pairs
    require_the_twins_losses(Twin(teacher, student, pairs), plan)


@pytest.mark.slow
@pytest.mark.parametrize("preset", ["bk_base", "bk_small", "bk_tiny"])
def test_losses_and_gradients_of_presets_match_the_reference(preset: str) -> None:
    teacher = fresh(tiny.V1)
    student = surgery.operate(teacher, **surgery.PAPER[preset])
    plan = plan_removal(unet_from_diffusers(tiny.V1), PRESETS[preset].removed)
    require_the_twins_losses(Twin(teacher, student, surgery.FEATURE_PAIRS[preset]), plan)


def random_noisy_batch() -> NoisyBatch:
    generator = np.random.default_rng(0)
    noisy, target = generator.standard_normal((2, 2, 8, 8, 4)).astype(np.float32)
    context = generator.standard_normal((2, 9, tiny.CONTEXT), np.float32)
    return NoisyBatch(noisy, np.full(2, 500, np.int32), target, {"context": context}, np.full(2, 0.5, np.float32))


def test_without_distillation_the_teacher_is_not_run() -> None:
    problem = dataclasses.replace(micro.problem(micro.ONE_STAGE), weights=LossWeights(output=0.0, feature=0.0))
    params = parameter_shapes(problem.plan.student)
    _, terms = jax.eval_shape(make_loss(problem), params, {}, random_noisy_batch())
    assert set(terms) == {"loss", "loss_task"}


@pytest.mark.slow
def test_bfloat16_losses_follow_float32() -> None:
    problem = micro.problem(micro.ONE_STAGE)
    plan, batch = problem.plan, random_noisy_batch()
    student, frozen = micro.params(plan.student, 0), {"teacher": micro.params(plan.teacher, 1)}
    (exact, _), grads = micro.gradient(plan)(student, frozen, batch)
    loss, short_frozen = make_loss(problem, jnp.bfloat16), cast_frozen(frozen, jnp.bfloat16)
    with jax.numpy_dtype_promotion("standard"):  # JAX's own attention relies on it
        short, terms = jax.jit(loss)(student, short_frozen, batch)
        shapes = jax.eval_shape(jax.grad(loss, has_aux=True), student, short_frozen, batch)
    assert float(short) == pytest.approx(float(exact), rel=0.05)
    assert float(short) != float(exact)
    assert {leaf.dtype for leaf in jax.tree.leaves((terms, shapes))} == {np.dtype(np.float32)}
    assert jax.tree.structure(shapes[0]) == jax.tree.structure(grads)


@pytest.mark.slow
def test_bfloat16_gradients_follow_float32() -> None:
    problem = micro.problem(micro.ONE_STAGE)
    plan, batch = problem.plan, random_noisy_batch()
    student, frozen = micro.params(plan.student, 0), {"teacher": micro.params(plan.teacher, 1)}
    (_, _), exact = micro.gradient(plan)(student, frozen, batch)
    gradient = jax.jit(jax.grad(make_loss(problem, jnp.bfloat16), has_aux=True))
    with jax.numpy_dtype_promotion("standard"):
        grads, _ = gradient(student, cast_frozen(frozen, jnp.bfloat16), batch)
    ours, theirs = (np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(tree)]) for tree in (grads, exact))
    assert np.linalg.norm(ours - theirs) < 0.1 * np.linalg.norm(theirs)


@pytest.mark.slow
def test_what_is_computed_anew_changes_no_gradient() -> None:
    problem = micro.problem()
    plan, batch = problem.plan, random_noisy_batch()
    arguments = micro.params(plan.student, 0), {"teacher": micro.params(plan.teacher, 1)}, batch

    def lowered(remat: str) -> Any:
        loss = make_loss(dataclasses.replace(problem, remat=remat))
        return jax.jit(jax.value_and_grad(loss, has_aux=True)).lower(*arguments)

    plain = lowered("none")
    (expected, _), expected_grads = plain.compile()(*arguments)
    inputs = batch.noisy, batch.timesteps, batch.conditioning
    forward = jax.jit(UNet(plan.student).apply).lower({"params": arguments[0]}, *inputs).cost_analysis()["flops"]
    more = {}
    for remat in ("products", "attention", "blocks", "full"):
        again = lowered(remat)
        (loss, _), grads = again.compile()(*arguments)
        assert float(loss) == pytest.approx(float(expected), rel=1e-6)
        for ours, theirs in zip(jax.tree.leaves(grads), jax.tree.leaves(expected_grads), strict=True):
            np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-5 * float(jnp.abs(theirs).max()) + 1e-8)
        more[remat] = (again.cost_analysis()["flops"] - plain.cost_analysis()["flops"]) / forward
    assert 0 < more["products"] < more["attention"] < more["blocks"] < more["full"] <= 1, more


def test_min_snr_weighs_images_as_the_paper_and_diffusers_do() -> None:
    from diffusers.training_utils import compute_snr

    t = np.array([0, 10, 300, 700, 999])
    for prediction in TARGETS:
        alpha_bar = schedule_from_diffusers(tiny.scheduler(prediction).config).alphas_cumprod()[t]
        snr = compute_snr(tiny.scheduler(prediction), torch.from_numpy(t)).numpy()
        divisor = {"epsilon": snr, "v_prediction": snr + 1, "sample": 1}[prediction]  # as Diffusers' training scripts
        expected = np.minimum(snr, 5.0) / divisor
        weight = min_snr_weight(5.0, prediction, jnp.asarray(alpha_bar, jnp.float32))
        np.testing.assert_allclose(weight, expected, rtol=1e-4)
    generator = np.random.default_rng()
    ours, target = (jnp.asarray(generator.standard_normal((5, 4, 4, 2)), jnp.float32) for _ in range(2))
    terms = distillation_terms(LossWeights(1, 0, 0), target, ours, {}, image_weights=weight)
    each = np.square(np.asarray(ours) - np.asarray(target)).mean(axis=(1, 2, 3))
    assert float(terms["loss"]) == pytest.approx(float((np.asarray(weight) * each).mean()), rel=1e-5)


def test_self_attention_features_are_sown_by_both() -> None:
    plan = micro.plan(tiny.MICRO_STUDENT)
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
    names_of_students = [pair.student for pair, _ in pairs]
    assert names_of_students == [
        f"{block}.transformer_blocks.0.attn1"
        for block in ("down_blocks.0.attentions.0", "up_blocks.1.attentions.0", "up_blocks.1.attentions.1")
    ]
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
