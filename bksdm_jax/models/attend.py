"""Multi-head attention, and its implementations for each device."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec

from bksdm_jax.base.errors import InputError, one_of
from bksdm_jax.models.choices import require_attention_name

_CHUNK = 512  # queries
_LARGE = 2**19  # scores per head above which they are computed in chunks
_HALF = (jnp.bfloat16, jnp.float16)
_LANES = 128  # TPU lanes; the flash kernel's block sizes are multiples of this


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
    """Computes the scores for a chunk of queries at a time, on CPUs also head by head, so that they fit in the cache.

    On two CPU cores, with 8 heads of 40 channels, this takes 0.25 of the time of `xla` at 4096 positions and 0.4 at
    1024.
    """
    batch, positions, heads, width = query.shape
    rows = max(n for n in range(1, min(positions, _CHUNK) + 1) if positions % n == 0)
    # Heads and chunks come first; the batch axis stays separate because it may be sharded.
    queries = query.reshape(batch, positions // rows, rows, heads, width).transpose(3, 1, 0, 2, 4)
    keys, values = key.transpose(2, 0, 3, 1), value.transpose(2, 0, 1, 3)  # [heads, B, D, M], [heads, B, M, D]

    @jax.checkpoint  # the backward pass recomputes the scores
    def chunk(query: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        scores = jnp.matmul(query, keys, preferred_element_type=jnp.float32)  # [..., rows, M]
        largest = jax.lax.stop_gradient(scores.max(axis=-1, keepdims=True))
        weights = jnp.exp((scores - largest) * width**-0.5)
        sums = weights.sum(axis=-1, keepdims=True)
        out = jnp.matmul(weights.astype(values.dtype), values, preferred_element_type=jnp.float32)
        return (out / sums).astype(values.dtype)

    def by_head(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        def head(operands: tuple[jax.Array, jax.Array, jax.Array]) -> jax.Array:
            return jax.lax.map(lambda rows: chunk(rows, *operands[1:]), operands[0])

        return jax.lax.map(head, (queries, keys, values))

    def by_rows(queries: jax.Array, keys: jax.Array, values: jax.Array) -> jax.Array:
        return jax.lax.map(lambda rows: chunk(rows, keys, values), queries.transpose(1, 0, 2, 3, 4)).swapaxes(0, 1)

    out = jax.lax.platform_dependent(queries, keys, values, cpu=by_head, default=by_rows)
    return out.transpose(2, 1, 3, 0, 4).reshape(query.shape)  # [heads, chunks, B, rows, D] -> [B, N, heads, D]


def _plain(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """`chunked` where the scores would be large, else `xla`."""
    return (_chunked if _is_large(query, key) else _xla)(query, key, value)


def _cudnn(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """cuDNN's fused kernel, where it supports the shapes."""
    fits = query.dtype in _HALF and query.shape[-1] % 8 == 0 and query.shape[-1] <= 128 and key.shape[1] % 2 == 0
    if not fits:
        return _plain(query, key, value)
    return jax.nn.dot_product_attention(query, key, value, implementation="cudnn")


def _flash(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """JAX's flash attention kernel for TPUs (Pallas), where it supports the shapes and is faster.

    XLA can't partition it, so under a mesh each device runs it on its share of the batch, which is split over all
    axes; a batch that isn't divisible falls back to `_plain`.
    """
    mesh = jax.sharding.get_abstract_mesh()
    if not _fits_flash(query, key) or query.shape[0] % max(mesh.size, 1):
        return _plain(query, key, value)
    if mesh.size <= 1:
        return _flash_kernel(query, key, value)
    split = PartitionSpec(mesh.axis_names)
    # check_vma: the kernel doesn't declare which axes its result varies over
    by_device = jax.shard_map(_flash_kernel, in_specs=(split,) * 3, out_specs=split, check_vma=False)
    return by_device(query, key, value)


def _flash_kernel(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    from jax.experimental.pallas.ops.tpu import flash_attention as kernel  # noqa: PLC0415  # brings all of Pallas

    rows, columns = (_block(x.shape[1], x.shape[-1]) for x in (query, key))
    of_queries = ("block_q", "block_q_major_dkv", "block_q_dkv", "block_q_dq")
    of_keys = ("block_k_major", "block_k", "block_k_major_dkv", "block_k_dkv", "block_k_major_dq", "block_k_dq")
    blocks = kernel.BlockSizes(block_b=1, **dict.fromkeys(of_queries, rows), **dict.fromkeys(of_keys, columns))
    by_head = (x.transpose(0, 2, 1, 3) for x in (query, key, value))  # [B, heads, N, D]
    out = kernel.flash_attention(*by_head, sm_scale=query.shape[-1] ** -0.5, block_sizes=blocks)
    return out.transpose(0, 2, 1, 3)


def _auto(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """The fastest implementation of the device for these shapes."""
    if _has_cudnn():
        return _cudnn(query, key, value)
    if _fits_flash(query, key):  # chosen at lowering, which may target a TPU that isn't attached
        return jax.lax.platform_dependent(query, key, value, tpu=_flash, default=_plain)
    return _plain(query, key, value)


def _has_cudnn() -> bool:
    """Whether the device is an NVIDIA GPU of the Ampere generation or later."""
    device = jax.devices()[0]
    on_nvidia = device.platform == "gpu" and "cuda" in device.client.platform_version.lower()
    return on_nvidia and float(device.compute_capability) >= 8.0


def _is_large(query: jax.Array, key: jax.Array) -> bool:
    return query.shape[1] * key.shape[1] > _LARGE


def _fits_flash(query: jax.Array, key: jax.Array) -> bool:
    width = query.shape[-1]
    blocks = query.shape[1] % _LANES == 0 and key.shape[1] % _LANES == 0
    return _is_large(query, key) and query.dtype in _HALF and blocks and (width < _LANES or width % _LANES == 0)


IMPLEMENTATIONS: dict[str, Callable[[jax.Array, jax.Array, jax.Array], jax.Array]] = {
    "auto": _auto,
    "xla": _xla,
    "chunked": _chunked,
    "cudnn": _cudnn,
    "flash": _flash,
}
"""name -> (query [B, N, heads, D], key, value [B, M, heads, D]) -> [B, N, heads, D].

Where a kernel doesn't support the shapes (such as the 77 keys of a text), `cudnn` and `flash` fall back to `_plain`.
"""
_DEVICES = {
    "cudnn": (_has_cudnn, "an NVIDIA GPU of the Ampere generation or later"),
    "flash": (lambda: jax.default_backend() == "tpu", "a TPU"),
}


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


def _block(positions: int, width: int) -> int:
    """The largest block size that divides `positions` and compiles, gradient included, for a TPU v4."""
    most = 1024 if width <= _LANES else 512
    return max(n for n in range(_LANES, most + 1, _LANES) if positions % n == 0)
