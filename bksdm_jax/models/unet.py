"""The U-Net: runs the rows of its block table. Modules are named as in Diffusers' Flax checkpoints (`resnets_0`)."""

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bksdm_jax.base.errors import whole_number
from bksdm_jax.models.abstract import parameter_shapes_of
from bksdm_jax.models.attention import CROSS_ATTENTION, SpatialTransformer
from bksdm_jax.models.layers import (
    Downsample,
    Interpolation,
    ResnetBlock,
    TimestepMLP,
    Upsample,
    conv,
    interpolate_channels,
    timestep_embedding,
)
from bksdm_jax.models.norms import GroupNorm
from bksdm_jax.models.remat import rematerialised
from bksdm_jax.models.unet_table import Block, UNetConfig, block_table, cuts, popped_skips, replaceable, shallow_rows

Conditioning = Mapping[str, jax.Array]
"""`context` [B, T, K]: the text states; with an added embedding also `text_embeds` [B, P]: the pooled text, and
`time_ids` [B, 6]: sizes and crops in pixels. Empty for a U-Net without text.

To measure what a block or a skip connection does, without compiling another network: `kept` bool [B, N], for each of
`replaceable(config)` whether it runs; where it doesn't, `interpolate_channels` of its input stands for it. `skips`
[B, M], for each of `popped_skips(config)` the factor of the skip that it takes.
"""
CachedCall = Callable[[Any, jax.Array, jax.Array, Conditioning, jax.Array | None], tuple[jax.Array, jax.Array]]
"""(params, latents, timesteps, conditioning, deep feature) -> (output, deep feature)."""
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
    "interpolation": (Interpolation, lambda row, cfg: {"width": row.out_width}),
    "downsampler": (Downsample, lambda row, cfg: {"width": row.out_width}),
    "upsampler": (Upsample, lambda row, cfg: {"width": row.out_width}),
}
"""Kind of a row -> its module class, and (row, config) -> the module's settings."""


class UNetStage(nn.Module):
    """Runs the rows of one stage; takes the skip stack and the deep feature and returns them as they are afterwards.

    Where skip `cut` is popped, a deep feature that was given replaces the stage's own; otherwise it becomes that.
    `kept` and `factors`, by block, are columns of the conditioning's `kept` and `skips`.
    """

    rows: tuple[Block, ...]
    config: UNetConfig
    dtype: jnp.dtype
    attention: str
    remat: str
    norms: str
    cut: int | None

    @nn.compact
    def __call__(
        self,
        x: jax.Array,
        skips: tuple[jax.Array, ...],
        deep: jax.Array | None,
        temb: jax.Array,
        context: jax.Array | None,
        kept: Mapping[str, jax.Array],
        factors: Mapping[str, jax.Array],
    ) -> tuple[jax.Array, tuple[jax.Array, ...], jax.Array | None]:
        inputs = {"resnet": (temb,), "attention": (context,)}
        for row in self.rows:
            if row.layer < row.depth - 1:
                continue  # the last layer's row runs all layers of a transformer
            if row.pops:
                if len(skips) - 1 == self.cut:
                    x = deep = x if deep is None else deep
                skip = skips[-1] * _by_image(factors[row.block], self.dtype) if row.block in factors else skips[-1]
                x, skips = jnp.concatenate([x, skip], axis=-1), skips[:-1]
            block, settings = KINDS[row.kind]
            more = {"dtype": self.dtype, "name": row.leaf.replace(".", "_")}
            if row.kind in ("resnet", "attention"):
                more["norms"] = self.norms
            if row.kind == "attention":
                more["attention"] = self.attention
            elif row.kind == "upsampler":
                more["size"] = skips[-1].shape[1:3]
            run = rematerialised(block, row.kind, self.remat)(**settings(row, self.config), **more)
            out = run(x, *inputs.get(row.kind, ()))
            if row.block in kept:
                out = jnp.where(_by_image(kept[row.block], bool), out, interpolate_channels(x, row.out_width))
            x = out
            if row.pushes:
                skips = (*skips, x)
        return x, skips, deep


def _columns(conditioning: Conditioning, name: str, blocks: tuple[str, ...]) -> dict[str, jax.Array]:
    """Block -> its column [B] of an entry of the conditioning; empty without the entry."""
    return {block: conditioning[name][:, i] for i, block in enumerate(blocks)} if name in conditioning else {}


def _by_image(values: jax.Array, dtype: Any) -> jax.Array:
    return values.astype(dtype)[:, None, None, None]  # [B] -> [B, 1, 1, 1]


class UNet(nn.Module):
    """Predicts noise (or velocity) from noisy latents, their timesteps and their conditioning.

    If the collection `FEATURES` is mutable, the outputs of every stage (`down_blocks.0`) and of every transformer's
    `attn1` and `proj_out` are sown; `captured` lists them. If `CROSS_ATTENTION` is, so are the weights of every
    `attn2`, which `attention_weights` lists; cross-attention then has them all in memory, whatever `attention` says.

    `full` and `shallow` are for sampling with DeepCache (Ma et al. 2023): the deep feature, which is concatenated with
    skip `cut` in the up half, changes little from step to step, so a shallow call takes an earlier full call's and runs
    the blocks before that skip and after it only.

    `attention` is a key of `attend.IMPLEMENTATIONS`, `remat` one of `choices.REMAT`, `norms` one of `choices.NORMS`,
    `cut` in `cuts(config)`.
    """

    config: UNetConfig
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    remat: str = "none"
    norms: str = "xla"
    cut: int | None = None

    def __call__(self, latents: jax.Array, timesteps: jax.Array, conditioning: Conditioning) -> jax.Array:
        """`latents` [B, H, W, in_channels], `timesteps` [B] -> [B, H, W, out_channels] in `dtype`.

        `conditioning` is as in `example_inputs`.
        """
        return self._run(block_table(self.config)[0], latents, timesteps, conditioning)[0]

    def full(self, latents: jax.Array, timesteps: jax.Array, conditioning: Conditioning) -> tuple[jax.Array, jax.Array]:
        """The output as of `__call__`, and the deep feature [B, h, w, C] in `dtype`."""
        require_cut(self.config, self.cut)
        return self._run(block_table(self.config)[0], latents, timesteps, conditioning)

    def shallow(
        self, latents: jax.Array, timesteps: jax.Array, conditioning: Conditioning, deep: jax.Array
    ) -> jax.Array:
        """The output as of `__call__`, with the deep feature of an earlier call of `full`."""
        require_cut(self.config, self.cut)
        return self._run(shallow_rows(self.config, self.cut), latents, timesteps, conditioning, deep)[0]

    @nn.compact
    def _run(
        self,
        rows: tuple[Block, ...],
        latents: jax.Array,
        timesteps: jax.Array,
        conditioning: Conditioning,
        deep: jax.Array | None = None,
    ) -> tuple[jax.Array, jax.Array | None]:
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
        skips: tuple[jax.Array, ...] = (x,)
        kept = _columns(conditioning, "kept", replaceable(cfg))
        factors = _columns(conditioning, "skips", popped_skips(cfg))
        stage_class = rematerialised(UNetStage, "stage", self.remat)
        for name in cfg.stages():
            own = tuple(row for row in rows if row.stage == name)
            how = (self.dtype, self.attention, self.remat, self.norms, self.cut)
            stage = stage_class(own, cfg, *how, name=name.replace(".", "_"))
            x, skips, deep = stage(x, skips, deep, temb, context, kept, factors)
            self.sow(FEATURES, f"{name}_features", x)
        assert not skips
        last = {"silu": True, "result": self.dtype, "norms": self.norms, "name": "conv_norm_out"}
        x = GroupNorm(cfg.norm_groups, cfg.norm_epsilon, **last)(x)
        return conv(cfg.out_channels, 3, "conv_out", self.dtype)(x), deep


def require_cut(config: UNetConfig, cut: int | None) -> None:
    """Raises `InputError` unless the U-Net has this cut."""
    whole_number("config", "cut", cut, 0, len(cuts(config)) - 1)


def deep_cache_calls(unet: UNet) -> tuple[CachedCall, CachedCall]:
    """A full and a shallow call of a U-Net with a `cut`, of one signature, so that `lax.cond` can choose.

    A full call ignores the deep feature that it is given; its shape and dtype are those of `jax.eval_shape`'s result.
    Raises `InputError` unless the U-Net has this cut.
    """
    require_cut(unet.config, unet.cut)

    def full(params: Any, *inputs: Any) -> tuple[jax.Array, jax.Array]:
        return unet.apply({"params": params}, *inputs[:-1], method="full")

    def shallow(params: Any, *inputs: Any) -> tuple[jax.Array, jax.Array]:
        return unet.apply({"params": params}, *inputs, method="shallow"), inputs[-1]

    return full, shallow


def captured(variables: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The features sown by `UNet.apply(..., mutable=[FEATURES])`, under Diffusers' names.

    Stage outputs are `down_blocks.0`, projections `down_blocks.2.attentions.1.proj_out`, each [B, H, W, C]; outputs of
    self-attention are `down_blocks.2.attentions.1.transformer_blocks.0.attn1`, [B, H * W, C].
    """
    return _sown(variables[FEATURES], "_features")


def attention_weights(variables: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The weights sown by `UNet.apply(..., mutable=[CROSS_ATTENTION])`, means over the heads, under Diffusers' names:
    `down_blocks.2.attentions.1.transformer_blocks.0.attn2` -> float32 [B, H * W, T].
    """
    return _sown(variables.get(CROSS_ATTENTION, {}), ".weights")


def _sown(collection: Any, suffix: str) -> dict[str, jax.Array]:
    found = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(collection):
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        found[".".join(dotted(name) for name in names).removesuffix(suffix)] = leaf
    return found


def dotted(name: str) -> str:
    """`down_blocks_1` -> `down_blocks.1`; other names, such as `linear_1` and `mid_block`, are unchanged."""
    head, _, number = name.rpartition("_")
    listed = head in ("down_blocks", "up_blocks", "resnets", "attentions", "downsamplers", "upsamplers")
    listed = listed or head in ("transformer_blocks", "net", "to_out", "layers", "conv")
    return f"{head}.{number}" if listed and number.isdigit() else name


def block_of(path: str) -> str:
    """The block of a parameter or layer: `down_blocks_0/resnets_1/conv1/kernel` -> `down_blocks.0.resnets.1`."""
    return ".".join(dotted(part) for part in path.split("/")[:2])


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
