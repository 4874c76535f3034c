"""The U-Net: runs the rows of its block table. Modules are named as in Diffusers' Flax checkpoints (`resnets_0`)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bksdm_jax.models.abstract import parameter_shapes_of
from bksdm_jax.models.attention import SpatialTransformer
from bksdm_jax.models.layers import Downsample, GroupNorm, ResnetBlock, TimestepMLP, Upsample, conv, timestep_embedding
from bksdm_jax.models.remat import rematerialised
from bksdm_jax.models.unet_table import Block, UNetConfig, block_table

Conditioning = Mapping[str, jax.Array]
"""`context` [B, T, K]: the text states; with an added embedding also `text_embeds` [B, P]: the pooled text, and
`time_ids` [B, 6]: sizes and crops in pixels. Empty for a U-Net without text.
"""
TIME_IDS = 6
FEATURES = "features"
"""The variable collection that captured features are sown into."""
KINDS = {
    "resnet": (
        ResnetBlock,
        lambda row, cfg: {"width": row.out_width, "groups": cfg.norm_groups, "epsilon": cfg.norm_epsilon},
    ),
    "attention": (
        SpatialTransformer,
        lambda row, cfg: {
            "heads": row.heads,
            "depth": row.depth,
            "linear_projection": cfg.linear_projection,
            "upcast": cfg.upcast_attention,
            "groups": cfg.norm_groups,
        },
    ),
    "downsampler": (Downsample, lambda row, cfg: {"width": row.out_width}),
    "upsampler": (Upsample, lambda row, cfg: {"width": row.out_width}),
}
"""Kind of a row -> its module class, and (row, config) -> the module's settings."""


class UNetStage(nn.Module):
    """Runs the rows of one stage; takes the skip stack and returns it as it is afterwards."""

    rows: tuple[Block, ...]
    config: UNetConfig
    dtype: jnp.dtype
    attention: str
    remat: str

    @nn.compact
    def __call__(
        self, x: jax.Array, skips: tuple[jax.Array, ...], temb: jax.Array, context: jax.Array | None
    ) -> tuple[jax.Array, tuple[jax.Array, ...]]:
        inputs = {"resnet": (temb,), "attention": (context,), "downsampler": (), "upsampler": ()}
        for row in self.rows:
            if row.layer < row.depth - 1:
                continue  # the last layer's row runs all layers of a transformer
            if row.pops:
                x, skips = jnp.concatenate([x, skips[-1]], axis=-1), skips[:-1]
            block, settings = KINDS[row.kind]
            more = {"attention": self.attention} if row.kind == "attention" else {}
            more |= {"dtype": self.dtype, "name": row.leaf.replace(".", "_")}
            x = rematerialised(block, row.kind, self.remat)(**settings(row, self.config), **more)(x, *inputs[row.kind])
            if row.pushes:
                skips = (*skips, x)
        return x, skips


class UNet(nn.Module):
    """Predicts noise (or velocity) from noisy latents, their timesteps and their conditioning.

    If the collection `FEATURES` is mutable, the outputs of every stage (`down_blocks.0`) and of every transformer's
    `attn1` and `proj_out` are sown; `captured` lists them.

    `attention` is a key of `attention.IMPLEMENTATIONS`, `remat` one of `remat.POLICIES`.
    """

    config: UNetConfig
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    remat: str = "none"

    @nn.compact
    def __call__(self, latents: jax.Array, timesteps: jax.Array, conditioning: Conditioning) -> jax.Array:
        """`latents` [B, H, W, in_channels], `timesteps` [B] -> [B, H, W, out_channels] in `dtype`.

        H and W must be multiples of `config.downscale`; `conditioning` is as in `example_inputs`.
        """
        cfg = self.config
        temb = timestep_embedding(timesteps, cfg.stem_width, cfg.flip_sin_to_cos, cfg.freq_shift)
        temb = TimestepMLP(4 * cfg.stem_width, self.dtype, name="time_embedding")(temb)
        if cfg.added is not None:
            ids = conditioning["time_ids"]
            sizes = timestep_embedding(ids.reshape(-1), cfg.added.time_width, cfg.flip_sin_to_cos, cfg.freq_shift)
            parts = (conditioning["text_embeds"], sizes.reshape(ids.shape[0], -1))
            joined = jnp.concatenate([part.astype(self.dtype) for part in parts], axis=-1)  # [B, added.width]
            temb = temb + TimestepMLP(4 * cfg.stem_width, self.dtype, name="add_embedding")(joined)
        context = None if cfg.context_width is None else conditioning["context"].astype(self.dtype)
        x = conv(cfg.stem_width, 3, "conv_in", self.dtype)(latents)
        rows, unused = block_table(cfg)
        assert not unused, unused
        skips: tuple[jax.Array, ...] = (x,)
        stage_class = rematerialised(UNetStage, "stage", self.remat)
        for name in cfg.stages():
            own = tuple(row for row in rows if row.stage == name)
            stage = stage_class(own, cfg, self.dtype, self.attention, self.remat, name=name.replace(".", "_"))
            x, skips = stage(x, skips, temb, context)
            self.sow(FEATURES, f"{name}_features", x)
        assert not skips
        x = GroupNorm(cfg.norm_groups, epsilon=cfg.norm_epsilon, result=self.dtype, name="conv_norm_out")(x)
        return conv(cfg.out_channels, 3, "conv_out", self.dtype)(nn.silu(x))


def captured(variables: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The features sown by `UNet.apply(..., mutable=[FEATURES])`, under Diffusers' names.

    Stage outputs are `down_blocks.0`, projections `down_blocks.2.attentions.1.proj_out`, each [B, H, W, C]; outputs of
    self-attention are `down_blocks.2.attentions.1.transformer_blocks.0.attn1`, [B, H * W, C].
    """
    features = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables[FEATURES]):
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        features[".".join(dotted(name) for name in names).removesuffix("_features")] = leaf
    return features


def dotted(name: str) -> str:
    """`down_blocks_1` -> `down_blocks.1`; other names, such as `linear_1` and `mid_block`, are unchanged."""
    head, _, number = name.rpartition("_")
    listed = head in ("down_blocks", "up_blocks", "resnets", "attentions", "downsamplers", "upsamplers")
    listed = listed or head in ("transformer_blocks", "net", "to_out", "layers", "conv")
    return f"{head}.{number}" if listed and number.isdigit() else name


def example_inputs(config: UNetConfig, batch: int = 1, size: int = 64) -> tuple[Any, ...]:
    """Shapes of latents [B, size, size, C], timesteps [B] and conditioning (text states [B, 77, K]), float32."""

    def array(*shape: int) -> jax.ShapeDtypeStruct:
        return jax.ShapeDtypeStruct((batch, *shape), jnp.float32)

    conditioning = {}
    if config.context_width is not None:
        conditioning["context"] = array(77, config.context_width)
    if config.added is not None:
        conditioning["text_embeds"] = array(config.added.width - TIME_IDS * config.added.time_width)
        conditioning["time_ids"] = array(TIME_IDS)
    return array(size, size, config.in_channels), array(), conditioning


def parameter_shapes(config: UNetConfig) -> dict[str, Any]:
    """The parameters as nested `jax.ShapeDtypeStruct`."""
    return parameter_shapes_of(UNet(config), *example_inputs(config, size=config.downscale))
