"""Both towers of CLIP with their projections into a shared space (Radford et al. 2021)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bksdm_jax.models.abstract import parameter_shapes_of
from bksdm_jax.models.clip import CLIPTextConfig, Encoder, TextTransformer, TowerConfig, norm
from bksdm_jax.models.layers import Dense


@dataclasses.dataclass(frozen=True, kw_only=True)
class CLIPVisionConfig(TowerConfig):
    """The image tower's architecture. Defaults are ViT-L/14's."""

    image_size: int = 224
    patch_size: int = 14
    width: int = 1024
    mlp_width: int = 4096
    layers: int = 24
    heads: int = 16


@dataclasses.dataclass(frozen=True)
class CLIPConfig:
    """Both towers, and the width of the space they project into."""

    text: CLIPTextConfig
    vision: CLIPVisionConfig
    projection: int = 768


class VisionEmbeddings(nn.Module):
    """A class token, then patches embedded by one convolution, plus position embeddings."""

    config: CLIPVisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        cfg = self.config
        patch = (cfg.patch_size, cfg.patch_size)
        embed = nn.Conv(cfg.width, patch, patch, "VALID", use_bias=False, dtype=self.dtype, name="patch_embedding")
        x = embed(images).reshape(images.shape[0], -1, cfg.width)  # [B, N, width]
        first = self.param("class_embedding", nn.initializers.normal(cfg.width**-0.5), (cfg.width,), jnp.float32)
        first = jnp.broadcast_to(first.astype(self.dtype), (x.shape[0], 1, cfg.width))
        x = jnp.concatenate([first, x], axis=1)
        positions = nn.Embed(x.shape[1], cfg.width, dtype=self.dtype, name="position_embedding")
        return x + positions(jnp.arange(x.shape[1]))[None]


class VisionTransformer(nn.Module):
    """Embeddings, norm, layers; the class token's state, normalised."""

    config: CLIPVisionConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        x = VisionEmbeddings(self.config, self.dtype, name="embeddings")(images)
        x = norm(self.config, self.dtype, "pre_layrnorm")(x)  # (sic) Transformers' spelling
        x = Encoder(self.config, False, self.dtype, name="encoder")(x)
        return norm(self.config, self.dtype, "post_layernorm")(x[:, 0])


class CLIP(nn.Module):
    """Both towers. Use as `clip.apply(variables, images, method="embed_images")`."""

    config: CLIPConfig
    dtype: jnp.dtype = jnp.float32

    def setup(self) -> None:
        self.text_model = TextTransformer(self.config.text, self.dtype)
        self.vision_model = VisionTransformer(self.config.vision, self.dtype)
        self.text_projection = Dense(self.config.projection, use_bias=False, dtype=self.dtype)
        self.visual_projection = Dense(self.config.projection, use_bias=False, dtype=self.dtype)
        self.logit_scale = self.param("logit_scale", nn.initializers.constant(2.6592), (), jnp.float32)

    def __call__(self, tokens: jax.Array, ends: jax.Array, images: jax.Array) -> jax.Array:
        """Cosine similarities times the learned scale, float32 [captions, images]; arguments as in `embed_*`."""
        texts, pictures = unit_length(self.embed_texts(tokens, ends)), unit_length(self.embed_images(images))
        return jnp.exp(self.logit_scale) * texts @ pictures.T

    def embed_texts(self, tokens: jax.Array, ends: jax.Array) -> jax.Array:
        """int32 [B, T], position of each caption's end-of-text token [B] -> [B, projection]."""
        states = self.text_model(tokens)
        last = jnp.take_along_axis(states, ends[:, None, None], axis=1)[:, 0]
        return self.text_projection(last)

    def embed_images(self, images: jax.Array) -> jax.Array:
        """[B, image_size, image_size, 3], normalised -> [B, projection]."""
        return self.project_images(self.image_features(images))

    def image_features(self, images: jax.Array) -> jax.Array:
        """[B, image_size, image_size, 3], normalised -> features before the projection, [B, width]."""
        return self.vision_model(images.astype(self.dtype))

    def project_images(self, features: jax.Array) -> jax.Array:
        """`image_features` [B, width] -> [B, projection]."""
        return self.visual_projection(features)


def unit_length(vectors: jax.Array) -> jax.Array:
    """[B, D] -> float32 [B, D] of Euclidean length 1."""
    vectors = vectors.astype(jnp.float32)
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)


def clip_parameter_shapes(config: CLIPConfig) -> dict[str, Any]:
    """The parameters as nested `jax.ShapeDtypeStruct`."""
    tokens = jax.ShapeDtypeStruct((1, config.text.max_length), jnp.int32)
    ends = jax.ShapeDtypeStruct((1,), jnp.int32)
    images = jax.ShapeDtypeStruct((1, config.vision.image_size, config.vision.image_size, 3), jnp.float32)
    return parameter_shapes_of(CLIP(config), tokens, ends, images)
