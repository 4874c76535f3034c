"""Attention and the U-Net's transformer blocks."""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax.sharding import PartitionSpec

from bksdm_jax.base.errors import InputError, one_of
from bksdm_jax.models.choices import require_attention_name
from bksdm_jax.models.devices import has_ampere
from bksdm_jax.models.layers import Dense, conv
from bksdm_jax.models.norms import GroupNorm, LayerNorm

_CHUNK = 512  # queries
_LARGE = 2**19  # scores per head above which they are computed in chunks
_HALF = (jnp.bfloat16, jnp.float16)
_LANES = 128  # TPU lanes; the flash kernel's block sizes are multiples of this
CROSS_ATTENTION = "cross_attention"
"""The variable collection that weights of cross-attention are sown into."""


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
    if has_ampere():
        return _cudnn(query, key, value)
    if _fits_flash(query, key):  # chosen at lowering, which may target a TPU that isn't attached
        return jax.lax.platform_dependent(query, key, value, tpu=_flash, default=_plain)
    return _plain(query, key, value)


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
    "cudnn": (has_ampere, "an NVIDIA GPU of the Ampere generation or later"),
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


class Attention(nn.Module):
    """Attention of `x` [B, N, C] to `context` [B, M, K], or to itself.

    If the collection `CROSS_ATTENTION` is mutable, the weights of attention to a context, [B, N, M], are sown.
    """

    heads: int
    upcast: bool = False
    dtype: jnp.dtype = jnp.float32
    implementation: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        sown = context is not None and self.is_mutable_collection(CROSS_ATTENTION) and not self.is_initializing()
        context = x if context is None else context
        width = x.shape[-1]
        query, key, value = (
            Dense(width, use_bias=False, dtype=self.dtype, name=name)(source)
            for name, source in (("to_q", x), ("to_k", context), ("to_v", context))
        )
        if self.upcast:
            query, key, value = (a.astype(jnp.float32) for a in (query, key, value))
        if sown:
            out, weights = attend_with_weights(query, key, value, self.heads)
            self.sow(CROSS_ATTENTION, "weights", weights)
        else:
            out = attend(query, key, value, self.heads, implementation=self.implementation)
        return Dense(width, dtype=self.dtype, name="to_out_0")(out.astype(self.dtype))


class GEGLU(nn.Module):
    """`a * gelu(b)`, where `a` and `b` are the halves of one linear layer (Shazeer 2020); the exact GELU."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return gated(Dense(2 * self.width, dtype=self.dtype, name="proj")(x))


@jax.custom_vjp
def gated(halves: jax.Array) -> jax.Array:
    """`a * gelu(b)` of [..., 2 C], `a` before `b`, with the exact GELU, in float32; [..., C] in the input's dtype.

    It gives its own gradient, so that the backward pass keeps the input only.
    """
    a, b = _halves(halves)
    return (a * nn.gelu(b, approximate=False)).astype(halves.dtype)


def _halves(halves: jax.Array) -> list[jax.Array]:
    return jnp.split(halves.astype(jnp.float32), 2, axis=-1)


def _gated_backward(halves: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    """With P and p the standard normal distribution and density, gelu(b) = b P(b) and gelu'(b) = P(b) + b p(b)."""
    (a, b), gradient = _halves(halves), cotangent.astype(jnp.float32)
    below = 0.5 * jax.lax.erfc(-math.sqrt(0.5) * b)
    density = jnp.exp(-0.5 * jnp.square(b)) / math.sqrt(2 * math.pi)
    both = gradient * b * below, gradient * a * (below + b * density)
    return (jnp.concatenate(both, axis=-1).astype(halves.dtype),)


gated.defvjp(lambda halves: (gated(halves), halves), _gated_backward)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = GEGLU(4 * width, dtype=self.dtype, name="net_0")(x)
        return Dense(width, dtype=self.dtype, name="net_2")(x)


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention and feed-forward, each with pre-norm and a residual connection.

    Without a context there is no cross-attention. The output of self-attention, before the residual is added, is sown
    as `features/.../attn1`, [B, N, C].
    """

    heads: int
    upcast: bool = False
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        def norm(name: str) -> LayerNorm:
            return LayerNorm(epsilon=1e-5, result=self.dtype, name=name)

        def attention(name: str) -> Attention:
            return Attention(self.heads, self.upcast, self.dtype, self.attention, name=name)

        attended = attention("attn1")(norm("norm1")(x))
        self.sow("features", "attn1_features", attended)
        x = x + attended
        if context is not None:
            x = x + attention("attn2")(norm("norm2")(x), context)
        return x + FeedForward(self.dtype, name="ff")(norm("norm3")(x))


class SpatialTransformer(nn.Module):
    """A transformer of `depth` layers over the pixels of a feature map, optionally conditioned on text states.

    Its input and output projections are 1x1 convolutions (SD v1) or linear layers (SD v2). The output of `proj_out`,
    before the residual is added, is sown as `features/.../proj_out`.
    """

    heads: int
    depth: int = 1
    linear_projection: bool = False
    upcast: bool = False
    groups: int = 32
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    norms: str = "xla"

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, epsilon=1e-6, result=self.dtype, norms=self.norms, name="norm")(x)
        if self.linear_projection:
            h = Dense(channels, dtype=self.dtype, name="proj_in")(h.reshape(batch, height * width, channels))
        else:
            h = conv(channels, 1, "proj_in", self.dtype)(h).reshape(batch, height * width, channels)
        for k in range(self.depth):
            name = f"transformer_blocks_{k}"
            h = TransformerLayer(self.heads, self.upcast, self.dtype, self.attention, name=name)(h, context)
        if self.linear_projection:
            h = Dense(channels, dtype=self.dtype, name="proj_out")(h).reshape(x.shape)
        else:
            h = conv(channels, 1, "proj_out", self.dtype)(h.reshape(x.shape))
        self.sow("features", "proj_out_features", h)
        return x + h  # [B, H, W, C]
