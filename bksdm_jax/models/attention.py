"""Attention, and the U-Net's transformer block."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from bksdm_jax.models.layers import Dense, GroupNorm, LayerNorm, conv


def attend(query: jax.Array, key: jax.Array, value: jax.Array, heads: int, causal: bool = False) -> jax.Array:
    """Multi-head attention, softmax(Q K^T / sqrt(D)) V, softmax in float32.

    Args:
        query: [B, N, heads * D].
        key, value: [B, M, heads * D].
        heads: number of heads.
        causal: position n sees positions <= n only.

    Returns:
        [B, N, heads * D] in the dtype of `query`.
    """

    def split(x: jax.Array) -> jax.Array:
        return x.reshape(*x.shape[:2], heads, -1)  # [B, N, heads, D]

    with jax.numpy_dtype_promotion("standard"):  # its softmax in float32 relies on implicit promotion
        out = jax.nn.dot_product_attention(split(query), split(key), split(value), is_causal=causal)
    return out.reshape(query.shape)


class Attention(nn.Module):
    """Attention of `x` [B, N, C] to `context` [B, M, K], or to itself, with `to_q`, `to_k`, `to_v`, `to_out_0`."""

    heads: int
    upcast: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array | None = None) -> jax.Array:
        context = x if context is None else context
        width = x.shape[-1]
        query, key, value = (
            Dense(width, use_bias=False, dtype=self.dtype, name=name)(source)
            for name, source in (("to_q", x), ("to_k", context), ("to_v", context))
        )
        if self.upcast:
            query, key, value = (a.astype(jnp.float32) for a in (query, key, value))
        out = attend(query, key, value, self.heads).astype(self.dtype)
        return Dense(width, dtype=self.dtype, name="to_out_0")(out)


class GEGLU(nn.Module):
    """`a * gelu(b)`, `a` and `b` the halves of one linear layer (Shazeer 2020), with the exact gelu."""

    width: int
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        a, b = jnp.split(Dense(2 * self.width, dtype=self.dtype, name="proj")(x), 2, axis=-1)
        return a * nn.gelu(b, approximate=False)


class FeedForward(nn.Module):
    """GEGLU to four times the width and back."""

    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        x = GEGLU(4 * width, dtype=self.dtype, name="net_0")(x)
        return Dense(width, dtype=self.dtype, name="net_2")(x)


class TransformerLayer(nn.Module):
    """Self-attention, cross-attention, feed-forward, each behind a LayerNorm and added to its input."""

    heads: int
    upcast: bool = False
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        def norm(name: str) -> LayerNorm:
            return LayerNorm(epsilon=1e-5, result=self.dtype, name=name)

        def attention(name: str) -> Attention:
            return Attention(self.heads, self.upcast, self.dtype, name=name)

        x = x + attention("attn1")(norm("norm1")(x))
        x = x + attention("attn2")(norm("norm2")(x), context)
        return x + FeedForward(self.dtype, name="ff")(norm("norm3")(x))


class SpatialTransformer(nn.Module):
    """The block `A`: one transformer layer over the pixels of a feature map, conditioned on text states.

    Projections into and out of it are 1x1 convolutions (SD v1) or linear layers (SD v2). The output of `proj_out`,
    before the residual is added, is sown as `features/.../proj_out`.
    """

    heads: int
    linear_projection: bool = False
    upcast: bool = False
    groups: int = 32
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, x: jax.Array, context: jax.Array) -> jax.Array:
        batch, height, width, channels = x.shape
        h = GroupNorm(self.groups, epsilon=1e-6, result=self.dtype, name="norm")(x)
        if self.linear_projection:
            h = h.reshape(batch, height * width, channels)
            h = Dense(channels, dtype=self.dtype, name="proj_in")(h)
        else:
            h = conv(channels, 1, "proj_in", self.dtype)(h)
            h = h.reshape(batch, height * width, channels)
        h = TransformerLayer(self.heads, self.upcast, self.dtype, name="transformer_blocks_0")(h, context)
        if self.linear_projection:
            h = Dense(channels, dtype=self.dtype, name="proj_out")(h).reshape(x.shape)
        else:
            h = conv(channels, 1, "proj_out", self.dtype)(h.reshape(x.shape))
        self.sow("features", "proj_out_features", h)
        return x + h  # [B, H, W, C]
