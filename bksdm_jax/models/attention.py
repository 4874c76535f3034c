"""The U-Net's transformer blocks."""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from bksdm_jax.models.attend import attend, attend_with_weights
from bksdm_jax.models.devices import by_platform, read_again
from bksdm_jax.models.layers import Dense, conv
from bksdm_jax.models.norms import GroupNorm, LayerNorm
from bksdm_jax.models.traced_once import traced_once

CROSS_ATTENTION = "cross_attention"
"""The variable collection that weights of cross-attention are sown into."""


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
    return (a * b * _below(b)).astype(halves.dtype)


def _halves(halves: jax.Array) -> list[jax.Array]:
    return jnp.split(halves.astype(jnp.float32), 2, axis=-1)


def _below(b: jax.Array) -> jax.Array:
    """The standard normal distribution by erf, as PyTorch computes it; erfc would be thirty operations more."""
    return 0.5 * (1.0 + jax.lax.erf(math.sqrt(0.5) * b))


def _gated_backward(halves: jax.Array, cotangent: jax.Array) -> tuple[jax.Array]:
    """With P and p the standard normal distribution and density, gelu(b) = b P(b) and gelu'(b) = P(b) + b p(b)."""
    (a, b), gradient = _halves(read_again(halves)), cotangent.astype(jnp.float32)
    below = _below(b)
    density = jnp.exp(-0.5 * jnp.square(b)) / math.sqrt(2 * math.pi)
    of_a, of_b = gradient * b * below, gradient * a * (below + b * density)
    # On GPUs XLA writes both halves before it concatenates them, but fuses a choice with what comes before.
    both = by_platform(of_a, of_b, cuda=_chosen_by_half, default=lambda *both: jnp.concatenate(both, axis=-1))
    return (both.astype(halves.dtype),)


def _chosen_by_half(a: jax.Array, b: jax.Array) -> jax.Array:
    """`a` and `b` concatenated along the last axis."""
    is_a = jnp.arange(2)[:, None] == 0  # [2, 1]
    both = jnp.where(is_a, a[..., None, :], b[..., None, :])  # [..., 2, C]
    return both.reshape(*a.shape[:-1], -1)


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

    @traced_once
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

    @traced_once
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
