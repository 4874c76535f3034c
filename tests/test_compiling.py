"""From functions to programs: equal layers are traced once, and nothing is collected meanwhile."""

import gc
import os
import subprocess
import sys
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import pytest
from flax import linen as nn

from bksdm_jax.base.compiling import lower, uncollected
from bksdm_jax.models.attention import SpatialTransformer
from bksdm_jax.models.clip import EncoderLayer, TowerConfig
from bksdm_jax.models.layers import ResnetBlock
from bksdm_jax.models.traced_once import intercepting, traced_once
from bksdm_jax.models.vit import Layer as ViTLayer
from bksdm_jax.models.vit import ViTConfig
from tests.command_lines import ROOT

TRACED: list[int] = []
PROGRAM = """Prints JAX's answer and XLA's flags.

  python -m launch.cost --config=configs/cost.py:v1
"""
START = f"""
import os
from bksdm_jax.perf.config import CostConfig
from launch.command import run_without_workdir

def call(config):
    import jax
    print(jax.jit(lambda x: 2 * x)(21), os.environ["XLA_FLAGS"])

run_without_workdir({PROGRAM!r}, CostConfig, call)
"""


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
    jax.clear_caches()
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


@pytest.mark.parametrize(
    ("layer", "settings", "shape"),
    [
        (ResnetBlock, {"width": 32}, (1, 4, 4, 32)),
        (SpatialTransformer, {"heads": 2}, (1, 4, 4, 32)),
        (SpatialTransformer, {"heads": 2, "depth": 3}, (1, 4, 4, 32)),
        (EncoderLayer, {"config": TowerConfig(width=32, heads=2), "causal": True, "dtype": jnp.float32}, (1, 7, 32)),
        (ViTLayer, {"config": ViTConfig(width=32, heads=2), "dtype": jnp.float32}, (1, 7, 32)),
    ],
)
def test_layers_of_networks_are_in_the_program_once(layer: Any, settings: Any, shape: tuple[int, ...]) -> None:
    class Layers(nn.Module):
        count: int

        @nn.compact
        def __call__(self, x: jax.Array) -> jax.Array:
            for number in range(self.count):
                x = layer(**settings, name=f"layers_{number}")(x)
            return x

    def norms(count: int) -> int:
        x = jnp.ones(shape)
        params = jax.eval_shape(Layers(count).init, jax.random.key(0), x)
        return jax.jit(Layers(count).apply).lower(params, x).as_text().count("stablehlo.rsqrt")

    assert norms(2) == norms(1) > 0
    if settings.get("depth"):
        assert norms(1) == 3  # a transformer's own norm, and a layer's, whose cross-attention is missing


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


@pytest.mark.parametrize("own", ["", "--xla_cpu_enable_fast_math=false"])
def test_xla_takes_the_flags_of_programs_unless_the_user_has_set_some(own: str) -> None:
    kept = {name: value for name, value in os.environ.items() if name != "XLA_FLAGS"}
    command = [sys.executable, "-c", START, "--config=configs/cost.py:v1"]
    env = kept | ({"XLA_FLAGS": own} if own else {})
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True, timeout=120, check=True)
    assert done.stdout == f"42 {own or '--xla_backend_extra_options=xla_cpu_disable_loop_unrolling'}\n"
