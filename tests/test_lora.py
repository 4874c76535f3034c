"""Adapters: merged or applied on the fly they give the same; updates are PEFT's, and gradients reach them alone."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import peft
import pytest
import torch
from flax import linen as nn

from bksdm_jax.base import trees
from bksdm_jax.formats.low_rank import LowRank, from_adapter
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.models.clip import CLIPTextConfig, CLIPTextEncoder, clip_text_parameter_shapes
from bksdm_jax.models.lora import Adapter, applied, merge, merged_kernel
from bksdm_jax.models.unet import UNet, parameter_shapes
from tests import tiny
from tests.arrays import require_close, require_equal

RANK, WEIGHT = 3, 0.7
UNETS = {"v1": tiny.PICO, "v2": tiny.PICO | {"use_linear_projection": True}}


def normal(generator: np.random.Generator, *shape: int) -> np.ndarray:
    return generator.standard_normal(shape).astype(np.float32)


def adapters(params: Any, dora: str = "") -> dict[str, Adapter]:
    """For every kernel; `dora` has magnitudes of outputs or inputs."""
    generator, found = np.random.default_rng(0), {}
    for path, kernel in trees.flatten(params).items():
        if not path.endswith("/kernel"):
            continue
        *size, inputs, out = kernel.shape
        fan = np.sqrt(inputs * np.prod(size, dtype=int))
        magnitude = None
        if dora:
            shape = (*(1 for _ in size), *((1, out) if dora == "outputs" else (inputs, 1)))
            magnitude = np.abs(1 + 0.2 * normal(generator, *shape)).astype(np.float32)
        down, up = normal(generator, *size, inputs, RANK) / fan, normal(generator, RANK, out)
        found[path] = Adapter(down.astype(np.float32), up, magnitude, 0.4)
    return found


def unet(generation: str, **settings: Any) -> tuple[UNet, Any, tuple[Any, ...]]:
    config = unet_from_diffusers(UNETS[generation])
    generator = np.random.default_rng(1)
    context = {"context": normal(generator, 2, 5, tiny.CONTEXT)}
    inputs = normal(generator, 2, 8, 8, 4), np.array([3, 500], np.float32), context
    return UNet(config, **settings), tiny.random_tree(parameter_shapes(config), 4), inputs


@pytest.mark.parametrize(
    ("generation", "dora", "settings"),
    [("v1", "", {}), ("v2", "", {"remat": "blocks"}), ("v1", "outputs", {}), ("v2", "inputs", {})],
)
def test_merged_and_unmerged_are_the_same(generation: str, dora: str, settings: dict[str, Any]) -> None:
    module, params, inputs = unet(generation, **settings)
    own = adapters(params, dora)

    @jax.jit
    def run(params: Any, own: Any, weight: Any) -> jax.Array:
        with applied(own, weight):
            return module.apply({"params": params}, *inputs)

    before = jax.tree.map(np.copy, params)
    merged = run(merge(params, own, WEIGHT), {}, 0.0)
    require_close(run(params, own, WEIGHT), np.asarray(merged), 1e-5)
    require_equal(params, before)
    without = run(params, {}, 0.0)
    assert np.abs(np.asarray(merged) - without).max() > 0.1 * np.abs(without).max()


def test_of_a_text_encoder() -> None:
    config = CLIPTextConfig(width=32, mlp_width=48, layers=2, heads=4, vocab_size=50, positions=8, max_length=8)
    params, tokens = tiny.random_tree(clip_text_parameter_shapes(config), 5), np.arange(8, dtype=np.int32)[None]
    own, module = adapters(params), CLIPTextEncoder(config)
    with applied(own):
        states = module.apply({"params": params}, tokens)
    require_close(states, np.asarray(module.apply({"params": merge(params, own)}, tokens)), 1e-5)


@pytest.mark.parametrize("dora", ["", "outputs"])
def test_gradients_reach_the_adapters_alone(dora: str) -> None:
    """Those of the low rank matrices are what the gradient of the merged kernel says; DoRA's norms are constants."""
    layer = nn.Conv(4, (3, 3), strides=2, padding=1)
    generator = np.random.default_rng(2)
    x = normal(generator, 2, 6, 6, 5)
    params = {"kernel": normal(generator, 3, 3, 5, 4), "bias": normal(generator, 4)}
    (own,) = adapters({"a": {"kernel": params["kernel"]}}, dora).values()

    def loss(own: Adapter) -> jax.Array:
        with applied({"kernel": own}):
            return jnp.square(layer.apply({"params": params}, x)).sum()

    def of_merged(own: Adapter) -> jax.Array:
        kernel = merged_kernel(jnp.asarray(params["kernel"]), own)
        if dora:
            changed = params["kernel"] + own.update()
            norms = jax.lax.stop_gradient(jnp.sqrt(jnp.square(changed).sum(axis=(0, 1, 2), keepdims=True)))
            kernel = own.magnitude * changed / norms
        return jnp.square(layer.apply({"params": params | {"kernel": kernel}}, x)).sum()

    found, expected = jax.value_and_grad(loss)(own), jax.value_and_grad(of_merged)(own)
    for ours, theirs in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        require_close(ours, np.asarray(theirs), 1e-5)
    assert len(jax.tree.leaves(found[1])) == (3 if dora else 2)


def test_nothing_is_paid_without_adapters() -> None:
    layer, x = nn.Dense(3), np.ones((2, 4), np.float32)
    params = {"kernel": np.ones((4, 3), np.float32), "bias": np.zeros(3, np.float32)}

    def text(own: dict[str, Adapter] | None) -> str:
        def run(x: Any) -> Any:
            if own is None:
                return layer.apply({"params": params}, x)
            with applied(own):
                return layer.apply({"params": params}, x)

        return str(jax.make_jaxpr(run)(x))

    other = {"elsewhere/kernel": adapters({"a": params})["a/kernel"]}
    assert text(None) == text({}) == text(other)
    assert text({"kernel": other["elsewhere/kernel"]}) != text(None)


@pytest.mark.parametrize("dora", [False, True])
@pytest.mark.parametrize("kind", ["linear", "conv"])
def test_updates_are_pefts(kind: str, dora: bool) -> None:
    torch.manual_seed(3)
    layer = torch.nn.Linear(5, 6) if kind == "linear" else torch.nn.Conv2d(5, 6, 3, stride=2, padding=1)
    config = peft.LoraConfig(r=RANK, lora_alpha=2, target_modules=["0"], init_lora_weights=False, use_dora=dora)
    model = peft.get_peft_model(torch.nn.Sequential(layer), config)
    wrapped = model.base_model.model[0]
    kernel = wrapped.base_layer.weight.detach().numpy().copy()
    magnitude = None
    if dora:
        with torch.no_grad():
            vector = wrapped.lora_magnitude_vector["default"].weight.mul_(1.3)
        magnitude = vector.detach().numpy().reshape(6, *(1 for _ in kernel.shape[1:]))
    down, up = (getattr(wrapped, name)["default"].weight.detach().numpy() for name in ("lora_A", "lora_B"))
    stored = LowRank(down, up.reshape(6, RANK), 2 / RANK, magnitude)
    adapter = stored.adapter()
    axes = (1, 0) if kind == "linear" else (2, 3, 1, 0)
    ours = merged_kernel(kernel.transpose(axes), adapter)
    merged = model.merge_and_unload()[0].weight.detach().numpy()
    require_close(ours, merged.transpose(axes), 1e-6)
    np.testing.assert_allclose(stored.squared_norm(), np.square(adapter.update()).sum(), rtol=1e-5)
    again = from_adapter(adapter)
    for field in dataclasses.fields(LowRank):
        np.testing.assert_array_equal(getattr(again, field.name), getattr(stored, field.name))


def test_a_merged_kernel_keeps_its_dtype() -> None:
    (own,) = adapters({"a": {"kernel": np.zeros((4, 3), np.float32)}}).values()
    for dtype in (np.float16, jnp.bfloat16, np.float32):
        merged = merged_kernel(np.ones((4, 3), dtype), own)
        assert merged.dtype == dtype
        np.testing.assert_allclose(merged.astype(np.float32), 1 + own.update(), rtol=1e-2)


def test_dora_of_zeros_is_zero() -> None:
    zeros = Adapter(np.zeros((3, 2), np.float32), np.zeros((2, 4), np.float32), np.ones((1, 4), np.float32))
    assert not merged_kernel(np.zeros((3, 4), np.float32), zeros).any()
    module = nn.Dense(4, use_bias=False)
    with applied({"kernel": zeros}):
        out = module.apply({"params": {"kernel": jnp.zeros((3, 4))}}, jnp.ones((1, 3)))
    assert not np.asarray(out).any()
