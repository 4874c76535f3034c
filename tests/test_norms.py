"""Norms and GEGLU against PyTorch in float64, what they keep for the backward pass, and the kernels for GPUs."""

from collections.abc import Callable
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
from jax.sharding import AbstractDevice, AbstractMesh

from bksdm_jax.base import trees
from bksdm_jax.base.errors import InputError
from bksdm_jax.formats.unet_json import unet_from_diffusers
from bksdm_jax.models import attention, norm_kernels
from bksdm_jax.models.attention import gated
from bksdm_jax.models.norms import GroupNormOptions, group_norm, layer_norm, require_norms
from bksdm_jax.models.traced_once import intercepting
from bksdm_jax.models.unet import UNet, example_inputs, parameter_shapes
from bksdm_jax.training.sharding import make_mesh
from tests import tiny

GROUPS, EPSILON = 4, 1e-5
GPU = AbstractMesh((1,), ("data",), abstract_device=AbstractDevice("NVIDIA H100 80GB HBM3", 132, "gpu"))
ROUNDING = {jnp.float32: 2e-6, jnp.bfloat16: 4e-3}
"""Largest error of a value or gradient, relative to the largest; half a unit in bfloat16's last place is 2e-3."""


def drawn(shape: tuple[int, ...], offset: float = 0.3, dtype: Any = jnp.float32) -> tuple[jax.Array, ...]:
    """Input, scale, bias and cotangent."""
    rng = np.random.default_rng(0)
    spread = rng.uniform(0.5, 2, shape[-1])
    arrays = rng.normal(offset, spread, shape), rng.normal(1, 0.3, shape[-1]), rng.normal(0, 0.3, shape[-1])
    dtypes = (dtype, jnp.float32, jnp.float32, dtype)
    return tuple(jnp.asarray(a, d) for a, d in zip((*arrays, rng.normal(size=shape)), dtypes, strict=True))


def by_torch(function: Callable[..., torch.Tensor], *inputs: jax.Array) -> list[np.ndarray]:
    """Result and gradients in float64; the last input is the cotangent."""
    *operands, cotangent = (torch.tensor(np.asarray(x, np.float64)) for x in inputs)
    for operand in operands:
        operand.requires_grad_()
    out = function(*operands)
    out.backward(cotangent)
    return [x.detach().numpy() for x in (out, *(operand.grad for operand in operands))]


def by_us(function: Callable[..., jax.Array], *inputs: jax.Array) -> list[jax.Array]:
    def both(*inputs: jax.Array) -> list[jax.Array]:
        out, pull = jax.vjp(function, *inputs[:-1])
        return [out, *pull(inputs[-1])]

    return jax.jit(both)(*inputs)


def require_close(ours: list[jax.Array], wanted: list[np.ndarray], rounding: float) -> None:
    for mine, theirs in zip(ours, wanted, strict=True):
        difference = np.abs(np.asarray(mine, np.float64) - theirs).max()
        assert difference <= rounding * np.abs(theirs).max(), difference / np.abs(theirs).max()


def torch_group_norm(x: torch.Tensor, scale: torch.Tensor, bias: torch.Tensor, silu: bool) -> torch.Tensor:
    out = torch.nn.functional.group_norm(x.movedim(-1, 1), GROUPS, scale, bias, EPSILON).movedim(1, -1)
    return torch.nn.functional.silu(out) if silu else out


def torch_gated(x: torch.Tensor) -> torch.Tensor:
    a, b = x.chunk(2, dim=-1)
    return a * torch.nn.functional.gelu(b)


def ours_group_norm(silu: bool, dtype: Any, norms: str = "xla") -> Callable[..., jax.Array]:
    return partial(group_norm, GroupNormOptions(GROUPS, EPSILON, silu, dtype, norms))


CASES = {
    "group norm": (lambda dtype: ours_group_norm(False, dtype), partial(torch_group_norm, silu=False), (2, 5, 3, 12)),
    "group norm, SiLU": (
        lambda dtype: ours_group_norm(True, dtype),
        partial(torch_group_norm, silu=True),
        (2, 4, 4, 8),
    ),
    "layer norm": (
        lambda dtype: partial(layer_norm, EPSILON, dtype),
        lambda x, *affine: torch.nn.functional.layer_norm(x, x.shape[-1:], *affine, EPSILON),
        (2, 7, 12),
    ),
    "gated": (lambda _: gated, torch_gated, (2, 7, 12)),
}


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("case", CASES)
def test_values_and_gradients_are_pytorchs_in_float64(case: str, dtype: Any) -> None:
    ours, theirs, shape = CASES[case]
    x, scale, bias, cotangent = drawn(shape, dtype=dtype)
    inputs = (x, cotangent[..., : shape[-1] // 2]) if case == "gated" else (x, scale, bias, cotangent)
    found, wanted = by_us(ours(dtype), *inputs), by_torch(theirs, *inputs)
    require_close(found, wanted, ROUNDING[dtype])
    assert [leaf.dtype for leaf in found] == [dtype, dtype, jnp.float32, jnp.float32][: len(found)]


@pytest.mark.parametrize("case", ["group norm, SiLU", "layer norm"])
def test_a_mean_far_above_the_deviation_costs_no_accuracy(case: str) -> None:
    ours, theirs, shape = CASES[case]
    inputs = drawn(shape, offset=3e3)
    require_close(by_us(ours(jnp.float32), *inputs), by_torch(theirs, *inputs), 5e-4)  # mean squares are off by 1


def test_on_gpus_gated_has_no_concatenation(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its gradient for them, run here, is the same."""
    x, cotangent = (jax.random.normal(jax.random.key(n), (2, 7, width), jnp.float32) for n, width in ((0, 12), (1, 6)))

    def gradient(x: jax.Array) -> jax.Array:
        return jax.vjp(gated, x)[1](cotangent)[0]

    traced = jax.jit(gradient).trace(x)
    counts = [traced.lower(lowering_platforms=(name,)).as_text().count("concatenate") for name in ("cuda", "tpu")]
    assert counts == [0, 1]
    expected = gradient(x)
    monkeypatch.setattr(attention, "by_platform", lambda *operands, cuda, default: cuda(*operands))
    np.testing.assert_array_equal(gradient(x), expected)


@pytest.mark.parametrize("case", CASES)
def test_only_the_input_and_statistics_are_kept(case: str) -> None:
    ours, _, shape = CASES[case]
    x, scale, bias, _ = drawn(shape, dtype=jnp.bfloat16)
    operands = (x,) if case == "gated" else (x, scale, bias)
    kept = jax.tree.leaves(jax.vjp(ours(jnp.bfloat16), *operands)[1])
    large = [leaf for leaf in kept if leaf.size >= x.size // 4]
    assert [(leaf.shape, leaf.dtype) for leaf in large] == [(x.shape, x.dtype)]
    sets = {"gated": 0, "layer norm": 2 * 7}.get(case, 2 * GROUPS)
    assert sorted(leaf.size for leaf in kept if leaf.ndim != 1 and leaf.size < x.size) == [sets] * 2 * bool(sets)


@pytest.mark.parametrize("case", CASES)
def test_on_tpus_the_backward_pass_converts_the_input_again(case: str) -> None:
    """Behind a barrier, so that XLA doesn't keep that of the forward pass; layer norm's sums have one anyway."""
    ours, _, shape = CASES[case]
    x, scale, bias, cotangent = drawn(shape, dtype=jnp.bfloat16)
    operands = (x,) if case == "gated" else (x, scale, bias)
    cotangent = cotangent[..., : shape[-1] // 2] if case == "gated" else cotangent
    traced = jax.jit(lambda *operands: jax.vjp(ours(jnp.bfloat16), *operands)[1](cotangent)).trace(*operands)
    barriers = [traced.lower(lowering_platforms=(name,)).as_text().count("_barrier") for name in ("cuda", "tpu")]
    assert barriers == ([1, 1] if case == "layer norm" else [0, 1])


@pytest.mark.parametrize("case", CASES)
def test_under_vmap(case: str) -> None:
    ours, _, shape = CASES[case]
    x, scale, bias, _ = drawn((3, *shape))
    affine = () if case == "gated" else (scale, bias)
    alone = jnp.stack([ours(jnp.float32)(one, *affine) for one in x])
    np.testing.assert_allclose(jax.vmap(lambda one: ours(jnp.float32)(one, *affine))(x), alone, atol=1e-6)


@pytest.fixture
def interpreted(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Runs the kernels on the CPU; returns the shapes that they were called with."""
    asked, call = [], norm_kernels._call
    monkeypatch.setattr(norm_kernels, "_PLATFORM", "cpu")
    monkeypatch.setattr(norm_kernels, "_call", lambda body, *x: asked.append(x[0].shape) or call(body, *x))
    return asked


@pytest.mark.parametrize(
    ("shape", "offset", "dtype", "runs"),
    [
        ((2, 16, 24, 64), 0.3, jnp.float32, True),  # three tiles of pixels
        ((1, 4, 4, 192), 0.3, jnp.bfloat16, True),  # three of channels, of the fewest pixels
        ((2, 16, 16, 64), 3e3, jnp.float32, True),
        ((2, 3, 5, 64), 0.3, jnp.float32, False),  # an odd number of pixels
        ((2, 4, 4, 96), 0.3, jnp.float32, False),  # channels that aren't whole tiles
    ],
)
def test_kernels(
    shape: tuple[int, ...], offset: float, dtype: Any, runs: bool, interpreted: list[tuple[int, ...]]
) -> None:
    inputs = drawn(shape, offset, dtype)
    rounding = ROUNDING[dtype] if offset < 1 else 5e-4
    for silu in (True, False)[: 1 + runs]:
        found = by_us(ours_group_norm(silu, dtype, "pallas"), *inputs)
        require_close(found, by_torch(partial(torch_group_norm, silu=silu), *inputs), rounding)
        assert len(interpreted) == (2 if runs else 0)  # forward and backward
        interpreted.clear()


def test_tiles_with_other_means_make_the_variance_of_the_whole(interpreted: list[tuple[int, ...]]) -> None:
    x, *others = drawn((1, 32, 16, 64))
    inputs = x + jnp.repeat(jnp.arange(4.0), 8)[None, :, None, None] * 7, *others
    found = by_us(ours_group_norm(True, jnp.float32, "pallas"), *inputs)
    require_close(found, by_torch(partial(torch_group_norm, silu=True), *inputs), ROUNDING[jnp.float32])
    assert interpreted


def test_each_device_runs_the_kernels_for_its_images(interpreted: list[tuple[int, ...]]) -> None:
    function = ours_group_norm(True, jnp.float32, "pallas")
    with jax.set_mesh(make_mesh(2, jax.devices()[:4])):
        for batch, seen in ((8, [(2, 16, 64)] * 2), (6, [])):  # six images don't divide by four devices
            inputs = drawn((batch, 4, 4, 64))
            found = by_us(function, *inputs)
            require_close(found, by_torch(partial(torch_group_norm, silu=True), *inputs), ROUNDING[jnp.float32])
            assert interpreted == seen
            interpreted.clear()


def test_lowered_for_other_devices() -> None:
    inputs = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in drawn((2, 8, 8, 320), dtype=jnp.bfloat16)]

    def text(norms: str, platform: str) -> str:
        function = ours_group_norm(True, jnp.bfloat16, norms)
        traced = jax.jit(lambda *x: jax.vjp(function, *x[:-1])[1](x[-1])).trace(*inputs)
        with jax.sharding.use_abstract_mesh(GPU):
            return traced.lower(lowering_platforms=(platform,)).as_text()

    assert text("pallas", "cuda").count("triton") == 2
    assert "custom_call" not in text("pallas", "tpu")
    assert "custom_call" not in text("xla", "cuda")


def test_all_group_norms_of_a_unet_are_by_kernels(interpreted: list[tuple[int, ...]]) -> None:
    config = unet_from_diffusers(tiny.PICO | {"block_out_channels": (64,)})
    shapes = {"params": parameter_shapes(config)}, *example_inputs(config, size=8)
    owners = {path.rpartition("/")[0] for path in trees.flatten(shapes[0]["params"])}
    norms = [path for path in owners if "norm" in path and "transformer_blocks" not in path]
    for name, count in (("pallas", len(norms)), ("xla", 0)):
        interpreted.clear()
        with intercepting(lambda call, args, kwargs, context: call(*args, **kwargs)):  # each layer is traced
            jax.eval_shape(UNet(config, norms=name).apply, *shapes)
        assert len(interpreted) == count


def test_pallas_needs_a_gpu() -> None:
    require_norms("xla")
    with pytest.raises(InputError, match=r"norms: pallas .*NVIDIA.*cpu"):
        require_norms("pallas")
    with pytest.raises(InputError, match=r"norms.*'palas'.*'pallas'"):
        require_norms("palas")
