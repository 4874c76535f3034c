"""Vision transformers whose class token describes an image: DINO (Caron et al. 2021), DINOv2 (Oquab et al. 2023)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bksdm_jax.base.resampling import bicubic_matrix
from bksdm_jax.models.abstract import parameter_shapes_of
from bksdm_jax.models.clip import MLP, SelfAttention, TowerConfig, norm
from bksdm_jax.models.traced_once import traced_once

LAYERS = "layers"


@dataclasses.dataclass(frozen=True, kw_only=True)
class ViTConfig(TowerConfig):
    """The architecture. Defaults are DINO ViT-S/16's.

    Attributes:
        image_size: pixels of a side, for which there are position embeddings; they are interpolated for others.
        patch_size: pixels of a patch's side.
        registers: tokens without position (Darcet et al. 2023).
        layer_scale: whether a learned factor per channel goes before each residual sum.
        antialias: whether position embeddings are antialiased when interpolated.
        offset: by which patches of a side are more when the interpolation's scale is computed; DINOv2's own code
            without registers has 0.1, Transformers 0.
    """

    image_size: int = 224
    patch_size: int = 16
    width: int = 384
    mlp_width: int = 1536
    heads: int = 6
    activation: str = "gelu"
    epsilon: float = 1e-6
    registers: int = 0
    layer_scale: bool = False
    antialias: bool = False
    offset: float = 0.0


class LayerScale(nn.Module):
    """A learned factor per channel, `lambda1`."""

    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        factor = self.param("lambda1", nn.initializers.ones_init(), (x.shape[-1],), jnp.float32)
        return x * factor.astype(self.dtype)


class Layer(nn.Module):
    """A pre-norm transformer layer."""

    config: ViTConfig
    dtype: jnp.dtype

    @traced_once
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        cfg = self.config
        attention = SelfAttention(cfg.heads, False, self.dtype, name="self_attn")
        mlp = MLP(cfg.mlp_width, cfg.activation, self.dtype, name="mlp")
        for number, inner in enumerate((attention, mlp), 1):
            h = inner(norm(cfg, self.dtype, f"layer_norm{number}")(x))
            x = x + (LayerScale(self.dtype, name=f"layer_scale{number}")(h) if cfg.layer_scale else h)
        return x


class Layers(nn.Module):
    """Layers under the names `0`, `1`, ..."""

    config: ViTConfig
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        for i in range(self.config.layers):
            x = Layer(self.config, self.dtype, name=str(i))(x)
        return x


class ViT(nn.Module):
    """Images [B, H, W, 3], normalised, H and W multiples of the patch size -> the class token's state [B, width]."""

    config: ViTConfig
    dtype: jnp.dtype = jnp.float32

    @nn.compact
    def __call__(self, images: jax.Array) -> jax.Array:
        cfg, normal = self.config, nn.initializers.normal(0.02)
        side = cfg.image_size // cfg.patch_size
        patch = (cfg.patch_size, cfg.patch_size)
        x = nn.Conv(cfg.width, patch, patch, "VALID", dtype=self.dtype, name="patch_embeddings")(images)
        rows, columns = x.shape[1:3]
        first = self.param("cls_token", normal, (1, 1, cfg.width), jnp.float32)
        positions = self.param("position_embeddings", normal, (1, 1 + side**2, cfg.width), jnp.float32)
        places = self._interpolated(positions[0, 1:].astype(jnp.float32), rows, columns)
        x = x.reshape(len(x), rows * columns, cfg.width) + places.astype(self.dtype)
        tokens = [first[0] + positions[0, :1]]
        if cfg.registers:
            tokens.append(self.param("register_tokens", normal, (1, cfg.registers, cfg.width), jnp.float32)[0])
        tokens = jnp.concatenate(tokens).astype(self.dtype)
        x = jnp.concatenate([jnp.broadcast_to(tokens, (len(x), *tokens.shape)), x], axis=1)
        x = Layers(cfg, self.dtype, name=LAYERS)(x)
        return norm(cfg, self.dtype, "layernorm")(x[:, 0])

    def _interpolated(self, positions: jax.Array, rows: int, columns: int) -> jax.Array:
        """[side^2, width] -> [rows * columns, width], float32."""
        cfg = self.config
        side = cfg.image_size // cfg.patch_size
        if (rows, columns) == (side, side):
            return positions
        vertical, horizontal = (
            bicubic_matrix(side, target, side / (target + cfg.offset), cfg.antialias) for target in (rows, columns)
        )
        grid = positions.reshape(side, side, cfg.width)
        found = jnp.einsum("ry,cx,yxd->rcd", vertical, horizontal, grid, precision=jax.lax.Precision.HIGHEST)
        return found.reshape(rows * columns, cfg.width)


def vit_parameter_shapes(config: ViTConfig) -> dict[str, Any]:
    """The parameters as nested `jax.ShapeDtypeStruct`."""
    images = jax.ShapeDtypeStruct((1, config.patch_size, config.patch_size, 3), jnp.float32)
    return parameter_shapes_of(ViT(config), images)
