"""Convolutions in the CPU's forms against XLA's own, with their gradients."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bksdm_jax.models.convolution import convolve

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
