"""Multi-head attention, and its implementations for each device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bksdm_jax.base.errors import InputError, one_of
from bksdm_jax.models import devices
from bksdm_jax.models.choices import require_attention_name
from bksdm_jax.models.cpu_attention import cpu_attention

_CHUNK = 512  # queries
_LARGE = 2**19  # scores per head above which they are computed in chunks, elsewhere than on CPUs
_HALF = (jnp.bfloat16, jnp.float16)
_LANES = 128  # of a TPU; block sizes of its kernels are multiples of this
_Implementation = Callable[[jax.Array, jax.Array, jax.Array], jax.Array]


def attend(
    query: jax.Array, key: jax.Array, value: jax.Array, heads: int, causal: bool = False, implementation: str = "auto"
) -> jax.Array:
    """Multi-head attention, softmax(Q K^T / sqrt(D)) V, softmax in float32.

    `query` is [B, N, heads * D], `key` and `value` are [B, M, heads * D]; the result has the query's shape and dtype.
    If `causal`, position n attends to positions <= n only, always by `xla`. Otherwise `implementation` is a key of
    `IMPLEMENTATIONS`, which all compute the same; another name raises `InputError`.
    """
    if implementation not in IMPLEMENTATIONS:
        raise one_of("attention", implementation, IMPLEMENTATIONS)
    operands = [_by_head(x, heads) for x in (query, key, value)]
    with jax.numpy_dtype_promotion("standard"):  # softmax in float32 relies on implicit promotion
        if causal:
            out = jax.nn.dot_product_attention(*operands, is_causal=True)
        else:
            out = IMPLEMENTATIONS[implementation](*operands)
    return out.reshape(query.shape)


def attend_with_weights(query: jax.Array, key: jax.Array, value: jax.Array, heads: int) -> tuple[jax.Array, jax.Array]:
    """What `attend` returns, and the weights it is computed with: their mean over the heads, float32 [B, N, M]."""
    queries, keys, values = (_by_head(x, heads) for x in (query, key, value))
    scores = jnp.einsum("bnhd,bmhd->bhnm", queries, keys, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(scores * queries.shape[-1] ** -0.5, axis=-1)
    out = jnp.einsum("bhnm,bmhd->bnhd", weights.astype(values.dtype), values)
    return out.reshape(query.shape), weights.mean(axis=1)


def _by_head(x: jax.Array, heads: int) -> jax.Array:
    return x.reshape(*x.shape[:2], heads, -1)  # [B, N, heads, D]


def _xla(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """XLA's own, with all scores in memory."""
    return jax.nn.dot_product_attention(query, key, value, implementation="xla")


def _chunked(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Computes the scores for a chunk of queries at a time; on CPUs `cpu_attention`."""
    return devices.by_platform(query, key, value, cpu=_cpu, default=_by_chunks)


def _by_chunks(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """Of queries. The backward pass computes the scores again."""
    batch, positions, heads, width = query.shape
    rows = max(n for n in range(1, min(positions, _CHUNK) + 1) if positions % n == 0)
    # Chunks come first; the batch axis stays separate because it may be sharded.
    queries = query.reshape(batch, positions // rows, rows, heads, width).transpose(1, 3, 0, 2, 4)
    keys, values = key.transpose(2, 0, 3, 1), value.transpose(2, 0, 1, 3)  # [heads, B, D, M], [heads, B, M, D]

    @jax.checkpoint
    def chunk(query: jax.Array) -> jax.Array:
        scores = jnp.matmul(query, keys, preferred_element_type=jnp.float32)  # [heads, B, rows, M]
        largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
        weights = jnp.exp((scores - largest) * width**-0.5)
        sums = weights.sum(axis=-1, keepdims=True)
        out = jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return (out / sums).astype(values.dtype)

    out = jax.lax.map(chunk, queries)
    return out.transpose(2, 0, 3, 1, 4).reshape(query.shape)  # [chunks, heads, B, rows, D] -> [B, N, heads, D]


def _cpu(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return _on_each_device(cpu_attention, query, key, value, otherwise=_by_size)


def _plain(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """On CPUs `cpu_attention`; elsewhere in chunks where the scores would be large, else `xla`."""
    if devices.compute_capability():
        return _by_size(query, key, value)  # spares GPUs the tracing of what CPUs compute
    return devices.by_platform(query, key, value, cpu=_cpu, default=_by_size)


def _by_size(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    return (_by_chunks if _is_large(query, key) else _xla)(query, key, value)


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """cuDNN's fused kernel, where it supports the shapes.

    Milliseconds on an H200, forward and backward, 8 images, 8 heads, bfloat16:

    | queries | keys | width of a head | cudnn | xla | chunked |
    |---|---|---|---|---|---|
    | 4096 | 4096 | 40 | 3.1 | 11.6 | 20.1 |
    | 1024 | 1024 | 80 | 0.49 | 1.04 | 1.74 |
    | 256 | 256 | 160 | | 0.18 | |
    | 4096 | 77 | 40 | 0.36 (78 keys) | 0.52 | |

    A distillation update of 64 images with width 160 by cuDNN, among other changes, took no longer than by XLA.
    """
    if not _fits_cudnn(query, key.shape[1]):
        return _plain(query, key, value)
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _cudnn_padded(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`cudnn`, and an odd number of keys, such as a text's 77, is made even by one that has no weight.

    Compiled for an H200, a layer with self- and cross-attention (4096 positions, 320 channels, 64 images, forward and
    backward) accesses 33.4 GB with it, 43.2 with `cudnn`. Not what `auto` takes, since it hasn't been run yet.
    """
    if key.shape[1] % 2 == 0 or not _fits_cudnn(query, key.shape[1] + 1):
        return _cudnn(query, key, value)
    return _on_each_device(_one_key_more, query, key, value)


def _one_key_more(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    lengths = jnp.full(key.shape[0], key.shape[1], jnp.int32)
    key, value = (jnp.pad(x, ((0, 0), (0, 1), (0, 0), (0, 0))) for x in (key, value))
    return jax.nn.dot_product_attention(query, key, value, key_value_seq_lengths=lengths, implementation="cudnn")


def _flash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """JAX's flash attention kernel for TPUs (Pallas), where it supports the shapes and the scores would be large."""
    width = query.shape[-1]
    fits = _fits_splash(query, key) and (width < _LANES or width % _LANES == 0)
    return _on_each_device(_flash_kernel, query, key, value) if fits else _plain(query, key, value)


def _flash_kernel(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel  # noqa: PLC0415  # brings all of Pallas

    most = 1024 if query.shape[-1] <= _LANES else 512  # what compiles, gradient included, for a TPU v4
    rows, columns = (_block(x.shape[1], most) for x in (query, key))
    of_queries = ("block_q", "block_q_major_dkv", "block_q_dkv", "block_q_dq")
    of_keys = ("block_k_major", "block_k", "block_k_major_dkv", "block_k_dkv", "block_k_major_dq", "block_k_dq")
    blocks = kernel.BlockSizes(block_b=1, **dict.fromkeys(of_queries, rows), **dict.fromkeys(of_keys, columns))
    by_head = (x.transpose(0, 2, 1, 3) for x in (query, key, value))  # [B, heads, N, D]
    out = kernel.flash_attention(*by_head, sm_scale=query.shape[-1] ** -0.5, block_sizes=blocks)
    return out.transpose(0, 2, 1, 3)


def _splash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """JAX's splash attention kernel for TPUs (Pallas), where it supports the shapes and the scores would be large.

    Compiled for a TPU v4, forward and backward, 4 images, 8 heads, bfloat16; bytes are XLA's count and the kernels'
    operands and results, instructions those of the kernels' loops for 2**20 scores:

    | positions | width of a head | kernel | temporaries | bytes | instructions |
    |---|---|---|---|---|---|
    | 4096 | 40 | splash | 46 MiB | 0.99 GB | 21,200 |
    | 4096 | 40 | flash | 705 MiB | 2.92 GB | 26,600 |
    | 1024 | 80 | splash | 4.5 MiB | 0.38 GB | 21,800 |
    | 1024 | 80 | flash | 73 MiB | 1.07 GB | 26,700 |
    """
    fits = _fits_splash(query, key)
    return _on_each_device(_splash_kernel, query, key, value) if fits else _plain(query, key, value)


def _splash_kernel(query: jax.Array, key: jax.Array, value: jax.Array, interpret: bool = False) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import splash_attention as kernel  # noqa: PLC0415  # brings all of Pallas

    heads, width = query.shape[2:]
    rows, columns = _block(query.shape[1], 512), _block(key.shape[1], 1024 if width <= 2 * _LANES else 512)
    of_queries, of_keys = ("block_q", "block_q_dkv", "block_q_dq"), ("block_kv", "block_kv_dkv", "block_kv_dq")
    at_once = ("block_kv_compute", "block_kv_dkv_compute")
    # Positions along the lanes: TPUs store projections so, and a head narrower than the lanes would be padded to them.
    layouts = dict.fromkeys(("q_layout", "k_layout", "v_layout"), kernel.QKVLayout.SEQ_MINOR)
    blocks = kernel.BlockSizes(
        **dict.fromkeys(of_queries, rows),
        **dict.fromkeys(of_keys, columns),
        **dict.fromkeys(at_once, _block(columns, 512)),
        **layouts,
    )
    mask = kernel.MultiHeadMask([kernel.FullMask((query.shape[1], key.shape[1]))] * heads)
    image = kernel.make_splash_mha(mask, head_shards=1, q_seq_shards=1, block_sizes=blocks, interpret=interpret)
    by_head = (x.transpose(0, 2, 1, 3) for x in (query * width**-0.5, key, value))  # [B, heads, N, D]
    return jax.vmap(image)(*by_head).transpose(0, 2, 1, 3)


def _on_each_device(
    kernel: _Implementation,
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    otherwise: _Implementation = _plain,
) -> jax.Array:
    """Under a mesh each device runs `kernel` on its share of the batch.

    XLA can't partition kernels, nor loops over the batch. The batch is split over all axes; one that isn't divisible
    falls back to `otherwise`.
    """
    axes, count = devices.axes_to_split()
    if query.shape[0] % count:
        return otherwise(query, key, value)
    if count == 1:
        return kernel(query, key, value)
    split = PartitionSpec(axes)
    # check_vma: a kernel doesn't declare which axes its result varies over
    return jax.shard_map(kernel, in_specs=(split,) * 3, out_specs=split, check_vma=False)(query, key, value)


def _auto(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """The fastest implementation of the device for these shapes."""
    if devices.has_ampere():
        return _cudnn(query, key, value)
    if _fits_splash(query, key):  # chosen at lowering, which may target a TPU that isn't attached
        return devices.by_platform(query, key, value, tpu=_splash, default=_plain)
    return _plain(query, key, value)


def _fits_cudnn(query: jax.Array, keys: int) -> bool:
    """Whether JAX accepts cuDNN for the shapes, with a gradient too; without one, odd numbers are accepted."""
    width, widest = query.shape[-1], 256 if devices.compute_capability() >= (9, 0) else 128
    even = query.shape[1] % 2 == 0 and keys % 2 == 0
    return query.dtype in _HALF and width % 8 == 0 and width <= widest and even


def _fits_splash(query: jax.Array, key: jax.Array) -> bool:
    blocks = query.shape[1] % _LANES == 0 and key.shape[1] % _LANES == 0
    return _is_large(query, key) and query.dtype in _HALF and blocks


def _is_large(query: jax.Array, key: jax.Array) -> bool:
    return query.shape[1] * key.shape[1] > _LARGE


def _block(positions: int, most: int) -> int:
    """The largest block size up to `most` that divides `positions`."""
    return max(n for n in range(_LANES, most + 1, _LANES) if positions % n == 0)


IMPLEMENTATIONS: dict[str, _Implementation] = {
    "auto": _auto,
    "xla": _xla,
    "chunked": _chunked,
    "cudnn": _cudnn,
    "cudnn_padded": _cudnn_padded,
    "flash": _flash,
    "splash": _splash,
}
"""name -> (query [B, N, heads, D], key, value [B, M, heads, D]) -> [B, N, heads, D].

Where a kernel doesn't support the shapes (such as the 77 keys of a text), the kernels fall back to `_plain`.
"""
_DEVICES = {
    "cudnn": (devices.has_ampere, "an NVIDIA GPU of the Ampere generation or later"),
    "flash": (lambda: jax.default_backend() == "tpu", "a TPU"),
}
_DEVICES |= {"cudnn_padded": _DEVICES["cudnn"], "splash": _DEVICES["flash"]}


def require_attention(name: str, dtype: jnp.dtype) -> None:
    """Raises `InputError` for an unknown implementation, or one that this device or dtype doesn't support."""
    require_attention_name(name)
    if name in _DEVICES:
        is_here, device = _DEVICES[name]
        if not is_here() or dtype not in _HALF:
            raise InputError(
                f"attention: {name} needs {device} and bfloat16; found {jax.devices()[0].device_kind} and "
                f"{jnp.dtype(dtype).name}; auto picks the fastest available"
            )
