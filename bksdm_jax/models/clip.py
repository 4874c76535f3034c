"""CLIP's text encoder as Stable Diffusion uses it: token ids -> the states that the U-Net attends to."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bksdm_jax.models.abstract import parameter_shapes_of
from bksdm_jax.models.attend import attend
from bksdm_jax.models.layers import Dense
from bksdm_jax.models.norms import LayerNorm
from bksdm_jax.models.traced_once import traced_once

ACTIVATIONS = {"quick_gelu": lambda x: x * nn.sigmoid(1.702 * x), "gelu": lambda x: nn.gelu(x, approximate=False)}


@dataclasses.dataclass(frozen=True, kw_only=True)
class TowerConfig:
    """Settings shared by the text and image towers. Defaults are those of ViT-L/14's text tower."""

    width: int = 768
    mlp_width: int = 3072
    layers: int = 12
    heads: int = 12
    activation: str = "quick_gelu"
    epsilon: float = 1e-5


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPTextConfig(TowerConfig):
    """The text tower's architecture. Defaults are SD v1's (ViT-L/14's).

    Attributes:
        positions: rows of the table of position embeddings.
        max_length: tokens of a caption, at most `positions`.
    """

    vocab_size: int = 49408
    positions: int = 77
    max_length: int = 77


class Embeddings(nn.Module):
    """Token plus position embeddings."""

    config: CLIPTextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        cfg = self.config
        words = nn.Embed(cfg.vocab_size, cfg.width, dtype=self.dtype, name="token_embedding")(tokens)
        positions = nn.Embed(cfg.positions, cfg.width, dtype=self.dtype, name="position_embedding")
        return words + positions(jnp.arange(tokens.shape[1]))[None]  # [B, T, width]


class SelfAttention(nn.Module):
    """Multi-head self-attention with biases; if `causal`, a position attends to itself and those before it."""

    heads: int
    causal: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        width = x.shape[-1]
        query, key, value = (Dense(width, dtype=self.dtype, name=name)(x) for name in ("q_proj", "k_proj", "v_proj"))
        out = attend(query, key, value, self.heads, causal=self.causal)
        return Dense(width, dtype=self.dtype, name="out_proj")(out)


class MLP(nn.Module):
    """linear - activation - linear."""

    width: int
    activation: str
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        h = ACTIVATIONS[self.activation](Dense(self.width, dtype=self.dtype, name="fc1")(x))
        return Dense(x.shape[-1], dtype=self.dtype, name="fc2")(h)


class EncoderLayer(nn.Module):
    """A pre-norm transformer layer."""

    config: TowerConfig
    causal: bool
    dtype: jnp.dtype

    @traced_once
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        attention = SelfAttention(cfg.heads, self.causal, self.dtype, name="self_attn")
        x = x + attention(norm(cfg, self.dtype, "layer_norm1")(x))
        mlp = MLP(cfg.mlp_width, cfg.activation, self.dtype, name="mlp")
        return x + mlp(norm(cfg, self.dtype, "layer_norm2")(x))


class Encoder(nn.Module):
    """The stack of layers, named `layers/0`, `layers/1`, ... as in Transformers' Flax checkpoints."""

    config: TowerConfig
    causal: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return LayerStack(self.config, self.causal, self.dtype, name="layers")(x)


class LayerStack(nn.Module):
    """Layers under the names `0`, `1`, ..."""

    config: TowerConfig
    causal: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.config.layers):
            x = EncoderLayer(self.config, self.causal, self.dtype, name=str(i))(x)
        return x


class TextTransformer(nn.Module):
    """Embeddings, layers, final norm."""

    config: CLIPTextConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        x = Embeddings(self.config, self.dtype, name="embeddings")(tokens)
        x = Encoder(self.config, True, self.dtype, name="encoder")(x)
        return norm(self.config, self.dtype, "final_layer_norm")(x)


class CLIPTextEncoder(nn.Module):
    """Text states for cross-attention: the last hidden state after the final norm."""

    config: CLIPTextConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, tokens: jax.Array) -> jax.Array:
        """int32 [B, T], T <= positions -> [B, T, width]."""
        return TextTransformer(self.config, self.dtype, name="text_model")(tokens)


def clip_text_parameter_shapes(config: CLIPTextConfig) -> dict[str, Any]:
    """The parameters as nested `jax.ShapeDtypeStruct`."""
    tokens = jax.ShapeDtypeStruct((1, config.max_length), jnp.int32)
    return parameter_shapes_of(CLIPTextEncoder(config), tokens)


def norm(config: TowerConfig, dtype: jnp.dtype, name: str) -> LayerNorm:
    """Layer normalisation with the tower's epsilon."""
    return LayerNorm(epsilon=config.epsilon, result=dtype, name=name)
