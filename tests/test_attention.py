"""Every implementation of attention computes the same, and so do its gradients."""

import functools
import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax._src.cudnn import fused_attention_stablehlo

from bksdm_jax.base.errors import InputError
from bksdm_jax.models import attend as module
from bksdm_jax.models import cpu_attention, devices
from bksdm_jax.models.attend import attend, require_attention
from bksdm_jax.training.sharding import make_mesh

# positions of queries and keys, heads, channels; the first is large enough for `auto` to take chunks on CPUs
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


@pytest.mark.parametrize(("chunk", "groups", "chunks"), [(2**20, 1, 1), (10_000, 2, 1), (1_000, 8, 4)])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
def test_on_cpus_chunks_change_nothing(
    dtype: jnp.dtype, chunk: int, groups: int, chunks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of several heads, of one, of some queries of one: what they attend to and all gradients."""
    monkeypatch.setattr(cpu_attention, "_AT_ONCE", chunk)
    monkeypatch.setattr(cpu_attention, "_CHUNK", chunk)
    inputs = drawn(SHAPES[2], dtype)
    by_head = [x.reshape(*x.shape[:2], 4, -1) for x in inputs]
    assert cpu_attention._divided(*by_head[:2]) == (groups, chunks)
    exact = gradients(tuple(x.astype(jnp.float32) for x in inputs), "xla", heads=4)
    bound = 2e-5 if dtype == jnp.float32 else 0.03
    for ours, theirs in zip(gradients(inputs, "auto", heads=4), exact, strict=True):
        assert ours.dtype == dtype
        assert np.abs(np.asarray(ours, np.float32) - theirs).max() <= bound * np.abs(theirs).max()


def test_chunks_for_other_devices_change_nothing() -> None:
    """Run here, as are small scores and batches that don't divide."""
    for shape in SHAPES[:2]:
        inputs = [x.reshape(*x.shape[:2], shape[2], -1) for x in drawn(shape)]

        def program(attention: Callable[..., jax.Array]) -> Callable[..., tuple[jax.Array, ...]]:
            return jax.jit(jax.grad(lambda *each: jnp.square(attention(*each)).sum(), (0, 1, 2)))

        for ours, theirs in zip(program(module._by_size)(*inputs), program(module._xla)(*inputs), strict=True):
            assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()
    assert module._is_large(*inputs[:2])
    three = tuple(jnp.concatenate([x, x[:1]]) for x in drawn(SHAPES[2]))
    expected = gradients(three, "xla")
    with jax.set_mesh(make_mesh(1, jax.devices()[:2])):
        for ours, theirs in zip(gradients(three, "auto"), expected, strict=True):
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


@pytest.mark.parametrize(
    ("name", "width", "kernel"),
    [
        ("auto", 40, "splash"),
        ("auto", 160, "splash"),
        ("splash", 40, "splash"),
        ("flash", 40, "flash"),
        ("flash", 160, None),
        ("chunked", 40, None),
    ],
)
def test_a_tpu_gets_its_kernel(name: str, width: int, kernel: str | None) -> None:
    """Lowered for a TPU on any machine: the kernel is a custom call there."""
    shapes = [jax.ShapeDtypeStruct((1, 1024, 2 * width), jnp.bfloat16)] * 3
    traced = jax.jit(lambda *inputs: attend(*inputs, heads=2, implementation=name)).trace(*shapes)
    calls = [line for line in traced.lower(lowering_platforms=("tpu",)).as_text().splitlines() if "tpu_custom_" in line]
    assert len(calls) == (kernel is not None)
    assert all(("splash" in call) == (kernel == "splash") for call in calls)


@pytest.mark.parametrize("shape", [(128, 256, 2, 40), (640, 1152, 1, 160)], ids=str)
def test_the_splash_kernel_computes_attention(shape: tuple[int, int, int, int]) -> None:
    """The kernel that TPUs run, interpreted; 640 queries are five blocks, 1152 keys three."""
    queries, keys, heads, width = shape
    inputs = tuple(x.reshape(*x.shape[:2], heads, width) for x in drawn((queries, keys, heads, heads * width)))
    weights = jnp.asarray(np.random.default_rng().standard_normal(inputs[0].shape, np.float32))

    def program(attention: Callable[..., jax.Array]) -> Callable[..., tuple[tuple[jax.Array, ...], jax.Array]]:
        def loss(*inputs: jax.Array) -> tuple[jax.Array, jax.Array]:
            with jax.numpy_dtype_promotion("standard"):
                out = attention(*inputs)
            return (out * weights).sum(), out

        return jax.jit(jax.grad(loss, (0, 1, 2), has_aux=True))

    kernel = functools.partial(module._splash_kernel, interpret=True)
    for ours, theirs in zip(
        *map(jax.tree.leaves, (program(kernel)(*inputs), program(module._xla)(*inputs))), strict=True
    ):
        assert np.abs(ours - theirs).max() <= 1e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("name", ["auto", "flash", "splash"])
def test_on_several_tpus_each_runs_the_kernel_for_its_part_of_the_batch(name: str, monkeypatch) -> None:
    monkeypatch.setattr(devices, "by_platform", jax.lax.platform_dependent)  # the mesh's devices stand for TPUs
    with jax.set_mesh(make_mesh(2, jax.devices()[:4])):
        for batch, count in ((8, 1), (6, 0)):  # six images don't divide by four devices
            shapes = [jax.ShapeDtypeStruct((batch, 1024, 160), jnp.bfloat16)] * 3
            traced = jax.jit(lambda *inputs: attend(*inputs, heads=4, implementation=name)).trace(*shapes)
            text = traced.lower(lowering_platforms=("tpu",)).as_text()
            assert text.count("tpu_custom_call") == count
            assert text.count("tensor<2x4x1024x40xbf16>") >= count  # two images each


def test_a_mesh_of_cpus_leaves_out_what_other_platforms_compute() -> None:
    def program(x: jax.Array) -> jax.Array:
        return devices.by_platform(x, cpu=jnp.sin, tpu=jnp.cos, default=jnp.tan)

    def traced() -> str:
        return str(jax.make_jaxpr(program)(1.0))

    assert all(name in traced() for name in ("sin", "cos", "tan"))
    with jax.set_mesh(make_mesh(1, jax.devices()[:2])):
        assert "sin" in traced()
        assert "cos" not in traced()
        assert float(program(1.0)) == pytest.approx(np.sin(1.0), rel=1e-6)


def test_what_a_shard_map_splits_already_is_not_split_again() -> None:
    seen: list[tuple[tuple[str, ...], int]] = []

    def inside(x: jax.Array) -> jax.Array:
        seen.append(devices.axes_to_split())
        return x

    mesh, split = make_mesh(2, jax.devices()[:4]), jax.sharding.PartitionSpec(("data", "fsdp"))
    with jax.set_mesh(mesh):
        assert devices.axes_to_split() == (("data", "fsdp"), 4)
        jax.jit(jax.shard_map(inside, in_specs=split, out_specs=split))(jnp.ones(4))
    assert seen == [((), 1)]
    assert devices.axes_to_split() == ((), 1)


def gradients(inputs: tuple[jax.Array, ...], name: str, heads: int = 2) -> tuple[jax.Array, ...]:
    def loss(*inputs: jax.Array) -> jax.Array:
        return jnp.square(attend(*inputs, heads=heads, implementation=name).astype(jnp.float32)).sum()

    return jax.jit(jax.grad(loss, (0, 1, 2)))(*inputs)


@pytest.mark.parametrize("name", ["auto", "flash", "splash"])
def test_the_parts_of_several_devices_make_the_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = tuple(jnp.concatenate([x] * 4) * jnp.arange(1, 9)[:, None, None].astype(x.dtype) for x in drawn(SHAPES[0]))
    monkeypatch.setattr(module, "_HALF", (jnp.float32,))
    if name != "auto":
        monkeypatch.setattr(module, f"_{name}_kernel", module._xla)  # the kernel itself runs on TPUs only
    expected = gradients(inputs, "xla")
    with jax.set_mesh(make_mesh(2)):
        for ours, theirs in zip(gradients(inputs, name), expected, strict=True):
            assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()


@pytest.mark.parametrize("devices", [1, 8])
def test_a_key_that_pads_has_no_weight(devices: int, monkeypatch: pytest.MonkeyPatch) -> None:
    asked, exact = [], jax.nn.dot_product_attention
    inputs = tuple(
        jnp.concatenate([x] * 4) * jnp.arange(1, 9)[:, None, None].astype(x.dtype) for x in drawn((16, 77, 2, 16))
    )
    expected = gradients(inputs, "xla")

    def masked(*operands: jax.Array, implementation: str, **options: jax.Array) -> jax.Array:
        """cuDNN's, by XLA."""
        asked.append((implementation, *(x.shape[:2] for x in operands)))
        return exact(*operands, implementation="xla", **options)

    monkeypatch.setattr(jax.nn, "dot_product_attention", masked)
    monkeypatch.setattr(module, "_HALF", (jnp.float32,))
    with jax.set_mesh(make_mesh(1, jax.devices()[:devices])):
        for ours, theirs in zip(gradients(inputs, "cudnn_padded"), expected, strict=True):
            assert np.abs(ours - theirs).max() <= 2e-5 * np.abs(theirs).max()
    each = 8 // devices
    assert asked == [("cudnn", (each, 16), (each, 78), (each, 78))]


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> Callable[[tuple[int, int]], None]:
    """Makes this machine an NVIDIA GPU of a compute capability, as far as tracing and lowering go."""

    def become(capability: tuple[int, int]) -> None:
        monkeypatch.setattr(devices, "compute_capability", lambda: capability)
        monkeypatch.setattr(fused_attention_stablehlo, "check_cudnn_version", lambda: 91000)
        monkeypatch.setattr(
            fused_attention_stablehlo,
            "check_compute_capability",
            lambda least: capability >= tuple(map(int, least.split("."))),
        )

    return become


@pytest.mark.parametrize("capability", [(8, 0), (8, 9), (9, 0), (10, 0)], ids=str)
def test_a_gpu_gets_cudnn_for_exactly_what_it_takes(capability: tuple[int, int], gpu) -> None:
    gpu(capability)

    def takes(query: jax.ShapeDtypeStruct, key: jax.ShapeDtypeStruct) -> bool:
        def loss(query: jax.Array, key: jax.Array) -> jax.Array:
            return jax.nn.dot_product_attention(query, key, key, implementation="cudnn").sum()

        try:
            jax.eval_shape(jax.grad(loss), query, key)
        except NotImplementedError:
            return False
        return True

    taken = 0
    for width, queries, keys in itertools.product((4, 8, 40, 60, 128, 136, 160, 256, 264), (15, 16), (77, 78)):
        for dtype in (jnp.bfloat16, jnp.float32):
            query, key = (jax.ShapeDtypeStruct((2, n, 1, width), dtype) for n in (queries, keys))
            assert module._fits_cudnn(query, keys) == takes(query, key), (width, queries, keys, dtype)
            taken += takes(query, key)
    assert taken == (6 if capability >= (9, 0) else 3)


@pytest.mark.parametrize(
    ("name", "shape", "forward", "backward"),
    [
        ("auto", (64, 64, 1, 40), 1, 1),
        ("cudnn", (64, 64, 1, 40), 1, 1),
        ("cudnn", (64, 78, 1, 160), 1, 1),
        ("auto", (64, 77, 1, 40), 0, 0),
        ("cudnn", (64, 77, 1, 40), 0, 0),
        ("cudnn", (64, 64, 1, 36), 0, 0),
        ("cudnn", (64, 64, 1, 264), 0, 0),
        ("cudnn_padded", (64, 77, 1, 40), 1, 1),
        ("cudnn_padded", (64, 64, 1, 40), 1, 1),
        ("cudnn_padded", (81, 77, 1, 40), 0, 0),
        ("xla", (64, 64, 1, 40), 0, 0),
    ],
    ids=str,
)
def test_a_gpu_gets_its_kernel(name: str, shape: tuple[int, int, int, int], forward: int, backward: int, gpu) -> None:
    """Lowered for an NVIDIA GPU on any machine."""
    gpu((9, 0))
    queries, keys, heads, channels = shape
    shapes = [jax.ShapeDtypeStruct((2, n, channels), jnp.bfloat16) for n in (queries, keys, keys)]
    program = jax.jit(jax.grad(lambda *x: attend(*x, heads=heads, implementation=name).sum(), (0, 1, 2)))
    with jax.numpy_dtype_promotion("standard"):  # for the gradient of XLA's attention
        text = program.trace(*shapes).lower(lowering_platforms=("cuda",)).as_text()
    assert text.count("@__cudnn$fmhaSoftmax(") == forward
    assert text.count("@__cudnn$fmhaSoftmaxBackward(") == backward


@pytest.mark.parametrize(
    ("name", "device"), [("cudnn", "NVIDIA"), ("cudnn_padded", "NVIDIA"), ("flash", "TPU"), ("splash", "TPU")]
)
def test_kernels_of_other_devices_are_refused(name: str, device: str) -> None:
    with pytest.raises(InputError, match=f"attention: {name} .*{device}.*bfloat16.*cpu"):
        require_attention(name, jnp.bfloat16)
    for known in ("auto", "xla", "chunked"):
        require_attention(known, jnp.float32)


def test_unknown_names_are_refused() -> None:
    with pytest.raises(InputError, match=r"attention: unknown name 'chunk'.*did you mean 'chunked'"):
        attend(*drawn(SHAPES[-1]), heads=1, implementation="chunk")
