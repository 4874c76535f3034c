"""Convolutions in the CPU's forms against XLA's own, with their gradients."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch

from bksdm_jax.cost.counts import layer_costs
from bksdm_jax.models import convolution
from bksdm_jax.models.convolution import convolve, convolve_doubled
from bksdm_jax.models.layers import Upsample
from bksdm_jax.models.lora import Adapter, applied, merge

NHWC = ("NHWC", "HWIO", "NHWC")


def case(batch: int, height: int, width: int, kernel: int = 3, channels: tuple[int, int] = (3, 5)) -> Any:
    generator = np.random.default_rng(0)
    x = generator.standard_normal((batch, height, width, channels[0]), np.float32)
    return x, generator.standard_normal((kernel, kernel, *channels), np.float32)


@pytest.mark.parametrize("size", [(4, 5), (17, 18)])  # by patches, by XLA's convolution
@pytest.mark.parametrize(
    ("stride", "padding", "kernel"),
    [
        (1, ((1, 1), (1, 1)), 3),
        (2, ((1, 1), (1, 1)), 3),
        (2, ((0, 1), (0, 1)), 3),
        (1, ((0, 0), (0, 0)), 1),
        (1, ((0, 2), (1, 0)), 3),
        (2, ((0, 0), (0, 0)), 1),
    ],
)
def test_results_and_gradients_are_xlas(size: tuple[int, int], stride: int, padding: Any, kernel: int) -> None:
    x, weights = case(2, *size, kernel)
    plain = partial(jax.lax.conv_general_dilated, dimension_numbers=NHWC)

    def found(function: Any) -> Any:
        out, gradients = jax.vjp(lambda x, w: function(x, w, (stride, stride), padding), x, weights)
        return out, gradients(jnp.cos(out))

    jax.tree.map(partial(np.testing.assert_allclose, rtol=1e-5, atol=2e-5), found(convolve), found(plain))


def test_gradients_inside_loops_are_in_the_only_form_that_is_fast_there() -> None:
    x, weights = case(2, 20, 20)

    def loss(weights: jax.Array, x: jax.Array) -> jax.Array:
        out = convolve(x, weights, (1, 1), ((1, 1), (1, 1)))
        return jnp.square(convolve(out, jnp.ones((3, 3, 5, 4)), (2, 2), ((1, 1), (1, 1)))).sum()

    gradient = jax.grad(loss)
    looped = jax.jit(lambda w, xs: jax.lax.map(lambda x: gradient(w, x), xs))
    text = looped.lower(weights, np.stack([x, x])).as_text()
    forms = [line for line in text.splitlines() if "stablehlo.convolution" in line]
    assert len(forms) >= 4
    assert all("[b, 0, 1, f]x[0, 1, i, o]->[b, 0, 1, f]" in line for line in forms)
    assert not any("dilate = [2" in line for line in forms)


def repeated(x: jax.Array, weights: jax.Array) -> jax.Array:
    return convolve(x.repeat(2, axis=1).repeat(2, axis=2), weights, (1, 1), ((1, 1), (1, 1)))


def torch_doubled(x: np.ndarray, weights: np.ndarray) -> tuple[np.ndarray, ...]:
    """The result for [B, H, W, C], and both gradients, in float64."""
    x, weights = (torch.tensor(one, dtype=torch.float64, requires_grad=True) for one in (x, weights))
    large = torch.nn.functional.interpolate(x.permute(0, 3, 1, 2), scale_factor=2, mode="nearest")
    out = torch.nn.functional.conv2d(large, weights.permute(3, 2, 0, 1), padding=1).permute(0, 2, 3, 1)
    out.backward(torch.cos(out.detach()))
    return out.detach().numpy(), x.grad.numpy(), weights.grad.numpy()


@pytest.mark.parametrize("size", [(16, 16), (20, 33), (2, 3)], ids=["as patches", "by XLA", "repeated"])
def test_doubled_maps_are_pytorchs(size: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(convolution, "_DOUBLED_ON_CPU", 0)
    x, weights = case(2, *size)
    out, gradient = jax.vjp(convolve_doubled, x, weights)
    for ours, theirs in zip((out, *gradient(jnp.cos(out))), torch_doubled(x, weights), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=2e-5 * np.abs(theirs).max())


def test_doubled_maps_in_bfloat16_are_rounded_little_more() -> None:
    """The kernels once more, and each of a kernel's four gradients, which are added up in float32."""
    half = [jnp.asarray(one, jnp.bfloat16) for one in case(4, 32, 32, channels=(32, 32))]
    wanted = torch_doubled(*(np.asarray(one, np.float32) for one in half))

    def errors(function: Any) -> np.ndarray:
        out, gradient = jax.vjp(function, *half)
        found = (out, *gradient(jnp.cos(wanted[0]).astype(jnp.bfloat16)))
        return np.array([np.square(np.asarray(a, np.float64) - b).mean() for a, b in zip(found, wanted, strict=True)])

    ratios = np.sqrt(errors(convolve_doubled) / errors(repeated))
    assert ratios.max() < 1.5, ratios


def test_large_doubled_maps_take_four_ninths_of_the_products() -> None:
    def products(function: Any, size: int, platform: str) -> float:
        x, weights = case(1, size, size, channels=(64, 64))
        lowered = jax.jit(function).trace(x, weights).lower(lowering_platforms=(platform,))
        return lowered.cost_analysis()["flops"]

    for size, platform, share in ((15, "tpu", 1), (16, "tpu", 4 / 9), (31, "cpu", 1), (32, "cpu", 4 / 9)):
        ratio = products(convolve_doubled, size, platform) / products(repeated, size, platform)
        assert ratio == pytest.approx(share, rel=0.05), (size, platform)


@pytest.mark.parametrize("size", [None, (63, 64)])
def test_upsampling_counts_as_ever_and_takes_adapters(size: tuple[int, int] | None) -> None:
    x, _ = case(1, 32, 32, channels=(4, 1))
    layer = Upsample(6, size=size)
    pixels = 64 * 64 if size is None else 63 * 64
    assert layer_costs(layer, x)["conv"].macs == 9 * 4 * 6 * pixels
    params = layer.init(jax.random.key(0), x)["params"]
    generator = np.random.default_rng(1)
    down, up = (generator.standard_normal(shape, np.float32) for shape in ((3, 3, 4, 2), (2, 6)))
    adapters = {"conv/kernel": Adapter(down, up, scale=0.5)}
    with applied(adapters):
        found = layer.apply({"params": params}, x)
    np.testing.assert_allclose(found, layer.apply({"params": merge(params, adapters)}, x), rtol=1e-4, atol=1e-4)
    if size:
        exact = torch_doubled(x, np.asarray(params["conv"]["kernel"]))[0][:, :62, :62]  # as far as nothing is cut
        np.testing.assert_allclose(layer.apply({"params": params}, x)[:, :62, :62], exact, rtol=1e-4, atol=1e-4)
