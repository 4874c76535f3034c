"""Every implementation of attention computes the same, and so do its gradients."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from bksdm_jax.base.errors import InputError
from bksdm_jax.models import attention
from bksdm_jax.models.attention import attend, require_attention
from bksdm_jax.training.sharding import make_mesh

# positions of queries and keys, heads, channels; the first two are large enough for `auto` to take chunks
SHAPES = [(1024, 1024, 2, 32), (900, 625, 1, 16), (64, 9, 4, 32), (7, 5, 1, 8)]


def drawn(shape: tuple[int, int, int, int], dtype: jnp.dtype = jnp.float32) -> tuple[jax.Array, ...]:
    queries, keys, _, channels = shape
    generator = np.random.default_rng()
    return tuple(
        jnp.asarray(generator.standard_normal((2, count, channels), np.float32), dtype)
        for count in (queries, keys, keys)
    )


def by_hand(query: np.ndarray, key: np.ndarray, value: np.ndarray, heads: int) -> np.ndarray:
    parts = []
    for q, k, v in zip(*(np.split(np.float64(x), heads, axis=-1) for x in (query, key, value)), strict=True):
        scores = np.exp(q @ k.swapaxes(1, 2) / np.sqrt(q.shape[-1]))
        parts.append(scores @ v / scores.sum(axis=-1, keepdims=True))
    return np.concatenate(parts, axis=-1)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_all_that_run_here_agree(shape: tuple[int, int, int, int]) -> None:
    inputs = drawn(shape)
    expected = by_hand(*map(np.asarray, inputs), shape[2])

    def program(name: str):
        def loss(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            out = attend(*inputs, heads=shape[2], implementation=name)
            return jnp.square(out).sum(), out

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))

    exact, _ = program("xla")(*inputs)
    for name in ("auto", "xla", "chunked"):
        gradients, out = program(name)(*inputs)
        np.testing.assert_allclose(out, expected, atol=2e-5)
        for ours, theirs in zip(gradients, exact, strict=True):
            assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()


def test_large_scores_are_never_held_at_once() -> None:
    """4096 positions in 8 heads: 512 MiB of scores."""
    shapes = [jax.ShapeDtypeStruct((1, 4096, 320), jnp.float32)] * 3

    def temporaries(name: str) -> int:
        program = jax.jit(lambda *inputs: attend(*inputs, heads=8, implementation=name))
        return program.lower(*shapes).compile().memory_analysis().temp_size_in_bytes

    assert temporaries("auto") < temporaries("xla") / 8


def test_half_precision_follows_float32() -> None:
    inputs = drawn(SHAPES[0], jnp.bfloat16)
    exact = by_hand(*(np.asarray(x, np.float32) for x in inputs), 2)
    for name in ("auto", "chunked"):
        out = attend(*inputs, heads=2, implementation=name)
        assert out.dtype == jnp.bfloat16
        assert np.abs(np.asarray(out, np.float32) - exact).max() < 0.02 * np.abs(exact).max()


def test_a_tpu_gets_the_flash_kernel() -> None:
    """Lowered for a TPU on any machine: the kernel is a custom call there."""
    shapes = [jax.ShapeDtypeStruct((1, 1024, 160), jnp.bfloat16)] * 3
    for name, count in (("auto", 1), ("flash", 1), ("chunked", 0)):
        traced = jax.jit(lambda *inputs, name=name: attend(*inputs, heads=4, implementation=name)).trace(*shapes)
        assert traced.lower(lowering_platforms=("tpu",)).as_text().count("tpu_custom_call") == count


@pytest.mark.parametrize("name", ["auto", "flash"])
def test_on_several_tpus_each_runs_the_kernel_for_its_part_of_the_batch(name: str) -> None:
    with jax.set_mesh(make_mesh(2, jax.devices()[:4])):
        for batch, count in ((8, 1), (6, 0)):  # six images don't divide by four devices
            shapes = [jax.ShapeDtypeStruct((batch, 1024, 160), jnp.bfloat16)] * 3
            traced = jax.jit(lambda *inputs: attend(*inputs, heads=4, implementation=name)).trace(*shapes)
            text = traced.lower(lowering_platforms=("tpu",)).as_text()
            assert text.count("tpu_custom_call") == count
            assert text.count("tensor<2x4x1024x40xbf16>") >= count  # two images each


def test_the_parts_of_several_devices_make_the_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tuple(jnp.concatenate([x] * 4) * jnp.arange(1, 9)[:, None, None].astype(x.dtype) for x in drawn(SHAPES[0]))
    monkeypatch.setattr(attention, "_HALF", (jnp.float32,))
    monkeypatch.setattr(attention, "_flash_kernel", attention._xla)  # the kernel itself runs on TPUs only

    def gradients(name: str) -> tuple[jax.Array, ...]:
        program = jax.jit(jax.grad(lambda *x: jnp.square(attend(*x, heads=2, implementation=name)).sum(), (0, 1, 2)))
        return program(*inputs)

    expected = gradients("xla")
    with jax.set_mesh(make_mesh(2)):
        for ours, theirs in zip(gradients("flash"), expected, strict=True):
            assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()


def test_a_gpu_gets_cudnn_where_it_can(monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []

    def noted(query: jax.Array, key: jax.Array, value: jax.Array, implementation: str) -> jax.Array:
        asked.append((implementation, query.shape[-1], key.shape[1], str(query.dtype)))
        return query

    monkeypatch.setattr(jax.nn, "dot_product_attention", noted)
    monkeypatch.setattr(attention, "has_ampere", lambda: True)
    for keys, channels, dtype in ((16, 64, jnp.bfloat16), (16, 64, jnp.float32), (16, 160, jnp.bfloat16)):
        attend(*drawn((16, keys, 1, channels), dtype), heads=1)
    attend(*drawn((16, 77, 1, 64), jnp.bfloat16), heads=1)
    assert asked == [
        ("cudnn", 64, 16, "bfloat16"),
        ("xla", 64, 16, "float32"),
        ("xla", 160, 16, "bfloat16"),
        ("xla", 64, 77, "bfloat16"),
    ]


@pytest.mark.parametrize(("name", "device"), [("cudnn", "NVIDIA"), ("flash", "TPU")])
def test_kernels_of_other_devices_are_refused(name: str, device: str) -> None:
    with pytest.raises(InputError, match=f"attention: {name} .*{device}.*bfloat16.*cpu"):
        require_attention(name, jnp.bfloat16)
    for known in ("auto", "xla", "chunked"):
        require_attention(known, jnp.float32)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"attention: unknown name 'chunk'.*did you mean 'chunked'"):
        attend(*drawn(SHAPES[-1]), heads=1, implementation="chunk")
