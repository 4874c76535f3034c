"""Presets, removal plans, and the teacher's weights in the student."""

import jax
import numpy as np
import pytest
from diffusers import UNet2DConditionModel

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.cost.counts import unet_cost
from bksdm_jax.formats import names
from bksdm_jax.formats.unet_json import unet_from_diffusers, unet_to_diffusers
from bksdm_jax.models.unet import parameter_shapes
from bksdm_jax.pipelines.stable_diffusion import TEACHERS
from bksdm_jax.pruning.presets import PRESETS
from bksdm_jax.pruning.removal import plan_removal, removed_blocks
from bksdm_jax.pruning.weights import copy_weights, random_weights
from tests import surgery, tiny


@pytest.mark.parametrize("preset", PRESETS)
@pytest.mark.parametrize("generation", TEACHERS)
def test_presets_have_the_published_size(preset: str, generation: str) -> None:
    plan = plan_removal(unet_from_diffusers(TEACHERS[generation]), PRESETS[preset].removed)
    assert trees.count(parameter_shapes(plan.student)) == PRESETS[preset].parameters[generation]


COUNTED = [("sd", "v1"), ("bk_base", "v1"), ("bk_tiny", "v2")]  # the others are slow tests
PUBLISHED = [(name, generation) for name, preset in PRESETS.items() for generation in preset.macs]


@pytest.mark.parametrize(
    ("preset", "generation"),
    [pytest.param(*case, marks=() if case in COUNTED else pytest.mark.slow) for case in PUBLISHED],
)
def test_presets_cost_what_was_published(preset: str, generation: str) -> None:
    plan = plan_removal(unet_from_diffusers(TEACHERS[generation]), PRESETS[preset].removed)
    costs = unet_cost(plan.student, 64)
    assert sum(cost.macs for cost in costs.values()) == PRESETS[preset].macs[generation]
    assert sum(cost.parameters for cost in costs.values()) == PRESETS[preset].parameters[generation]


@pytest.mark.parametrize("preset", surgery.FEATURE_PAIRS)
def test_feature_pairs_are_the_authors(preset: str) -> None:
    for generation in TEACHERS.values():
        plan = plan_removal(unet_from_diffusers(generation), PRESETS[preset].removed)
        assert [(pair.teacher, pair.student) for pair in plan.features] == surgery.FEATURE_PAIRS[preset]


@pytest.mark.parametrize("student", [*surgery.PAPER, surgery.ONE_STAGE])
def test_weight_copy_is_bit_equal_to_surgery(student: str) -> None:
    teacher = tiny.randomize(UNet2DConditionModel(**tiny.V1), 3)
    config = unet_from_diffusers(teacher.config)
    plan = plan_removal(config, removed_blocks(student))
    copied = trees.flatten(copy_weights(plan, tiny.flax_params(teacher, parameter_shapes(config))))
    how = surgery.PAPER.get(student)
    by_hand = surgery.operate(teacher, **how) if how else surgery.one_stage(teacher)
    expected = {name: tensor.numpy() for name, tensor in by_hand.state_dict().items()}
    ours = {names.torch_name(path): names.to_torch(path, leaf) for path, leaf in copied.items()}
    assert ours.keys() == expected.keys()
    for name, array in ours.items():
        np.testing.assert_array_equal(array, expected[name])


def test_random_weights_follow_pytorchs_default() -> None:
    config = unet_from_diffusers(tiny.MICRO)
    ours = trees.flatten(random_weights(config, 7))
    module = UNet2DConditionModel(**tiny.MICRO)
    theirs = trees.flatten(tiny.flax_params(module.requires_grad_(False), parameter_shapes(config)))
    for path, array in ours.items():
        assert array.dtype == np.float32
        if array.size > 500:  # enough to estimate a spread from
            assert array.std() == pytest.approx(theirs[path].std(), rel=0.15)
            assert np.abs(array).max() <= np.abs(theirs[path]).max() * 1.1
    again, other = trees.flatten(random_weights(config, 7)), trees.flatten(random_weights(config, 8))
    kernel = "conv_in/kernel"
    np.testing.assert_array_equal(ours[kernel], again[kernel])
    assert not np.array_equal(ours[kernel], other[kernel])


@pytest.mark.parametrize(
    ("student", "facts"),
    [
        ("down_blocks.1.resnets.1", ("up_blocks.2.resnets.1 ", " down_blocks.0.downsamplers.0 ", " 320 ", " 640")),
        ("up_blocks.3.resnets.1", ("conv_in",)),  # whose skip nothing takes
        ("down_blocks.1", ("down_blocks.2.resnets.0 ", " down_blocks.0.downsamplers.0 ")),
        # Widths agree here, resolutions don't.
        ("down_blocks.2.resnets.1,up_blocks.0.resnets.1", ("up_blocks.", " 1/4 ", " 1/8")),
        ("down_blocks.3", ("up_blocks.0",)),
        ("bk_bsae", ("'bk_bsae'", "'bk_base'")),
        ("down_blocks.1.attentions.7", ("down_blocks.1.attentions.1",)),
        ("mid_block,down_blocks.9", ("'down_blocks.9'",)),
        (" , ", ("bk_tiny",)),
        (",".join(f"down_blocks.{i}" for i in range(4)), ("no down_blocks",)),
    ],
)
def test_lists_that_cannot_work_are_refused(student: str, facts: tuple[str, ...]) -> None:
    with pytest.raises(InputError, match="student") as error:
        plan_removal(unet_from_diffusers(TEACHERS["v1"]), removed_blocks(student))
    assert all(fact in str(error.value) for fact in facts), error.value
    assert "\n" not in str(error.value)


def test_unknown_block_names_list_those_that_exist() -> None:
    with pytest.raises(InputError) as error:
        plan_removal(unet_from_diffusers(tiny.MICRO), ("mid",))
    for name in ("mid_block", "down_blocks.0", "and 15 more", "bk_tiny"):
        assert name in str(error.value)


def test_a_pair_without_its_attention_has_no_diffusers_config() -> None:
    plan = plan_removal(unet_from_diffusers(TEACHERS["v1"]), ("down_blocks.1.attentions.1",))
    with pytest.raises(InputError, match=r"down_blocks\.1: .*RA R"):
        unet_to_diffusers(plan.student)


def test_the_outer_stages_can_go_where_widths_allow() -> None:
    """Removing the first down and the last up stage moves every feature to another size: no pair is left there."""
    config = unet_from_diffusers(tiny.V1)  # widths 32, 32, 64, 64
    plan = plan_removal(config, ("down_blocks.0", "up_blocks.3"))
    assert plan.features == ()
    assert plan.student.up[-1].resampler is False
    assert unet_from_diffusers(unet_to_diffusers(plan.student)) == plan.student
    copied = copy_weights(plan, random_weights(config, 0))
    assert jax.tree.map(np.shape, copied) == jax.tree.map(lambda s: s.shape, parameter_shapes(plan.student))


def test_a_student_can_be_a_teacher() -> None:
    base = plan_removal(unet_from_diffusers(TEACHERS["v1"]), PRESETS["bk_base"].removed).student
    small = plan_removal(base, ("mid_block",)).student
    assert trees.count(parameter_shapes(small)) == PRESETS["bk_small"].parameters["v1"]
