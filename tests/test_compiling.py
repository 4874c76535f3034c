"""From functions to programs: equal layers are traced once, and nothing is collected meanwhile."""

import gc
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from bksdm_jax.base.compiling import lower, uncollected
from bksdm_jax.models.layers import ResnetBlock
from bksdm_jax.models.traced_once import intercepting, traced_once

TRACED: list[int] = []


class Layer(nn.Module):
    width: int

    @traced_once
    @nn.compact
    def __call__(self, x: jax.Array, shift: jax.Array | None = None) -> jax.Array:
        TRACED.append(self.width)
        x = nn.Dense(self.width, name="dense")(x if shift is None else x + shift)
        self.sow("features", "out", x)
        return x


class Stack(nn.Module):
    widths: tuple[int, ...]

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for number, width in enumerate(self.widths):
            x = Layer(width, name=f"layers_{number}")(x)
        return x


@pytest.fixture(autouse=True)
def untraced() -> Iterator[None]:
    TRACED.clear()
    yield
    TRACED.clear()


def stack(*widths: int) -> tuple[Stack, Any, jax.Array]:
    model, x = Stack(widths), jnp.ones((2, widths[0]))
    params = {"params": model.init(jax.random.key(0), x)["params"]}
    TRACED.clear()
    return model, params, x


def test_layers_of_equal_settings_and_shapes_are_traced_once() -> None:
    model, params, x = stack(3, 3, 5, 3, 3)  # a 3 follows a 5 once
    found = jax.jit(model.apply)(params, x)
    assert TRACED == [3, 5, 3]
    wanted = x
    for number in range(5):
        one = params["params"][f"layers_{number}"]["dense"]
        wanted = wanted @ one["kernel"] + one["bias"]
    assert jnp.allclose(found, wanted, atol=1e-5)


def test_calls_that_capture_features_are_traced_apart() -> None:
    model, params, x = stack(7, 7)
    plain = model.apply(params, x)
    out, features = model.apply(params, x, mutable=["features"])
    assert TRACED == [7, 7]
    assert jnp.array_equal(plain, out)
    (last,) = features["features"]["layers_1"]["out"]
    assert jnp.array_equal(last, out)


def test_an_interceptor_meets_every_call() -> None:
    model, params, x = stack(4, 4, 4)
    plain = model.apply(params, x)
    met = []

    def intercept(call: Any, args: Any, kwargs: Any, context: Any) -> Any:
        out = call(*args, **kwargs)
        if not isinstance(context.module, nn.Dense):
            return out
        met.append("/".join(context.module.path))
        return 2 * out

    for _ in range(2):
        with intercepting(intercept):
            doubled = model.apply(params, x)
    assert met == [f"layers_{number}/dense" for number in range(3)] * 2
    assert not jnp.allclose(doubled, plain)
    assert jnp.array_equal(model.apply(params, x), plain)


def test_blocks_of_the_unet_are_in_the_program_once() -> None:
    class Two(nn.Module):
        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for number in range(2):
                x = ResnetBlock(32, name=f"resnets_{number}")(x)
            return x

    x = jnp.ones((1, 4, 4, 32))
    params = jax.eval_shape(Two().init, jax.random.key(0), x)
    text = jax.jit(Two().apply).lower(params, x).as_text()
    assert text.count("stablehlo.rsqrt") == 2  # one for each norm of a block


def test_nothing_is_collected_while_a_function_is_traced() -> None:
    seen: list[bool] = []

    def function(x: jax.Array) -> jax.Array:
        seen.append(gc.isenabled())
        return 2 * x

    program = lower(jax.jit(function), jnp.ones(3))
    assert seen == [False]
    assert gc.isenabled()
    assert program.compile()(jnp.ones(3)).tolist() == [2, 2, 2]


def test_collecting_goes_on_after_an_error_and_stays_off_if_it_was() -> None:
    with pytest.raises(ZeroDivisionError), uncollected():
        _ = 1 / 0
    assert gc.isenabled()
    gc.disable()
    try:
        with uncollected():
            pass
        assert not gc.isenabled()
    finally:
        gc.enable()
