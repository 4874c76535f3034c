"""Attention for CPUs: the scores stay in the cache and are never transposed.

Scores lie as [..., keys, queries]. All products that they take part in, also for the gradients, want them so; XLA would
transpose them three times. Large ones are computed in chunks, of several heads or of some queries of one head. The
backward pass computes them again.

Milliseconds on two CPU cores, forward, and forward and backward, float32:

| batch | queries | keys | heads | width of a head | this | xla |
|---|---|---|---|---|---|---|
| 32 | 64 | 77 | 8 | 4 | 0.8, 2.1 | 1.6, 5.6 |
| 32 | 256 | 256 | 8 | 4 | 5.3, 15 | 44, 131 |
| 2 | 1024 | 1024 | 8 | 40 | 12, 36 | 75, 259 |
| 2 | 1024 | 77 | 8 | 40 | 2.2, 6.1 | 2.8, 8.7 |
| 1 | 4096 | 77 | 8 | 40 | 6.9, 15 | 5.1, 29 |
"""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

_AT_ONCE = 2**23  # bytes of scores that are computed without chunks
_CHUNK = 2**22


@jax.custom_vjp
def cpu_attention(query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
    """softmax(Q K^T / sqrt(D)) V, softmax in float32: `query` [B, N, heads, D], `key` and `value` [B, M, heads, D]."""
    return _forward(query, key, value)[0]


def _forward(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, tuple[jax.Array, ...]]:
    groups, chunks = _divided(query, key)

    def group(columns: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
        out, sums = _map(lambda columns: _attend(columns, key, value), _split(columns, 2, chunks))
        return _joined(out, 2), _joined(sums, 2)

    operands = _columns(query), _rows(key), _columns(value)
    out, sums = _map(group, *(_split(x, 0, groups) for x in operands))
    out, sums = _joined(out, 0), _joined(sums, 0)
    batch, positions, heads, width = query.shape
    return out.reshape(batch, heads, width, positions).transpose(0, 3, 1, 2), (query, key, value, out, sums)


def _backward(
    saved: tuple[jax.Array, jax.Array, jax.Array, jax.Array, jax.Array], cotangent: jax.Array
) -> tuple[jax.Array, jax.Array, jax.Array]:
    query, key, value, out, sums = saved
    groups, chunks = _divided(query, key)
    cotangent = cotangent.astype(out.dtype)
    columns = _columns(cotangent)
    inner = (out.astype(jnp.float32) * columns.astype(jnp.float32)).sum(axis=1, keepdims=True)

    def group(*operands: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
        if chunks == 1:
            return _gradients(*operands)
        of_keys = operands[6:]
        parts = tuple(_split(x, axis, chunks) for x, axis in zip(operands, (1, 2, 1, 2, 2, 2), strict=False))

        def chunk(sums: list[jax.Array], part: tuple[jax.Array, ...]) -> tuple[list[jax.Array], jax.Array]:
            of_query, *others = _gradients(*part, *of_keys)
            return [a + b for a, b in zip(sums, others, strict=True)], of_query

        zero = jnp.zeros(of_keys[0].shape, jnp.float32)
        (of_key, of_value), of_query = jax.lax.scan(chunk, [zero, zero], parts)
        return _joined(of_query, 2), of_key, of_value

    operands = (_rows(query), _columns(query), _rows(cotangent), columns, inner, sums)
    operands += (_rows(key), _columns(key), _rows(value))
    of_query, of_key, of_value = (_joined(x, 0) for x in _map(group, *(_split(x, 0, groups) for x in operands)))
    batch, positions, heads, width = query.shape
    return (
        of_query.reshape(batch, heads, width, positions).transpose(0, 3, 1, 2).astype(query.dtype),
        of_key.reshape(batch, heads, -1, width).transpose(0, 2, 1, 3).astype(key.dtype),
        of_value.reshape(batch, heads, -1, width).transpose(0, 2, 1, 3).astype(value.dtype),
    )


cpu_attention.defvjp(_forward, _backward)


def _attend(query: jax.Array, key: jax.Array, value: jax.Array) -> tuple[jax.Array, jax.Array]:
    """Of `query` [G, D, N], `key` [G, M, D] and `value` [G, D, M]: the result [G, D, N], and log sum exp [G, 1, N]."""
    scores, scale = _product(key, query), query.shape[1] ** -0.5
    largest = scores.max(axis=1, keepdims=True)
    weights = jnp.exp((scores - largest) * scale)
    sums = weights.sum(axis=1, keepdims=True)
    out = _product(value, weights.astype(value.dtype)) / sums
    return out.astype(value.dtype), largest * scale + jnp.log(sums)


def _gradients(
    query: jax.Array,
    query_columns: jax.Array,
    cotangent: jax.Array,
    cotangent_columns: jax.Array,
    inner: jax.Array,
    sums: jax.Array,
    key: jax.Array,
    key_columns: jax.Array,
    value: jax.Array,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Of the query [G, D, N], of the key and the value [G, M, D], in float32.

    With P the weights, g the cotangent: dV = P^T g, dS = P (g V^T - sum(g * out)) / sqrt(D), dQ = dS K, dK = dS^T Q.
    """
    scale = query.shape[-1] ** -0.5
    weights = jnp.exp(_product(key, query_columns) * scale - sums)
    of_scores = (weights * (_product(value, cotangent_columns) - inner) * scale).astype(query.dtype)
    of_value = _product(weights.astype(value.dtype), cotangent)
    return _product(key_columns, of_scores), _product(of_scores, query), of_value


def _product(a: jax.Array, b: jax.Array) -> jax.Array:
    return jax.lax.dot_general(a, b, (((2,), (1,)), ((0,), (0,))), preferred_element_type=jnp.float32)


def _rows(x: jax.Array) -> jax.Array:
    """[B, N, heads, D] -> [B * heads, N, D]."""
    return x.transpose(0, 2, 1, 3).reshape(-1, x.shape[1], x.shape[3])


def _columns(x: jax.Array) -> jax.Array:
    """[B, N, heads, D] -> [B * heads, D, N]."""
    return x.transpose(0, 2, 3, 1).reshape(-1, x.shape[3], x.shape[1])


def _divided(query: jax.Array, key: jax.Array) -> tuple[int, int]:
    """Into how many groups of heads, and each into how many chunks of queries, the scores are divided."""
    heads, positions, row = query.shape[0] * query.shape[2], query.shape[1], 4 * key.shape[1]
    if heads * positions * row <= _AT_ONCE:
        return 1, 1
    groups = _divisor(heads, heads * positions * row / _CHUNK)
    return groups, _divisor(positions, positions * row / _CHUNK) if groups == heads else 1


def _divisor(number: int, least: float) -> int:
    """The smallest divisor of `number` that is at least `least`, or else `number`."""
    return next((n for n in range(1, number) if number % n == 0 and n >= least), number)


def _split(x: jax.Array, axis: int, count: int) -> jax.Array:
    """`count` parts of `axis`, along a new first axis."""
    parts = x.reshape(*x.shape[:axis], count, x.shape[axis] // count, *x.shape[axis + 1 :])
    return jnp.moveaxis(parts, axis, 0)


def _joined(parts: jax.Array, axis: int) -> jax.Array:
    """What `_split` has split."""
    x = jnp.moveaxis(parts, 0, axis)
    return x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])


def _map(function: Callable[..., Any], *parts: jax.Array) -> Any:
    """`function` of each part, one after the other; a single one without a loop."""
    if len(parts[0]) == 1:
        return jax.tree.map(lambda x: x[None], function(*(x[0] for x in parts)))
    return jax.lax.map(lambda parts: function(*parts), parts)
