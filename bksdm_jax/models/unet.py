"""The U-Net of Stable Diffusion as an ordered table of named blocks.

`UNetConfig` says which blocks there are; `block_table` lists them in the order in which they run, each with the widths
that follow from the blocks before it and from the skip stack; `UNet` runs that list. Names are Diffusers'.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn

from bksdm_jax.models.abstract import parameter_shapes_of
from bksdm_jax.models.attention import SpatialTransformer
from bksdm_jax.models.layers import Downsample, GroupNorm, ResnetBlock, TimestepMLP, Upsample, conv, timestep_embedding
from bksdm_jax.models.remat import rematerialised

Conditioning = Mapping[str, jax.Array]
"""What a prediction is conditioned on: `context` [B, T, K], the text states; where there is an added embedding also
`text_embeds` [B, P], the pooled text, and `time_ids` [B, 6], sizes and crops in pixels. Without text it is empty.
"""
TIME_IDS = 6
FEATURES = "features"
"""The variable collection that captured features are sown into."""


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: `down_blocks.i`, `mid_block` or `up_blocks.i`.

    Attributes:
        width: output channels.
        heads: attention heads.
        pairs: entry j has the letter `R` if there is `resnets.j`, and an `A` for each layer of the transformer
            `attentions.j`.
        resampler: whether the stage ends in its down- or upsampler.
    """

    width: int
    heads: int
    pairs: tuple[str, ...]
    resampler: bool

    @property
    def depths(self) -> tuple[int, ...]:
        """How many layers `attentions.j` has, for each j; 0 where there is none."""
        return tuple(pair.count("A") for pair in self.pairs)


@dataclasses.dataclass(frozen=True)
class AddedEmbedding:
    """What SDXL adds to the timestep's embedding (Podell et al. 2023, section 2.2).

    Attributes:
        width: numbers that go in, those of the pooled text and the sinusoids of every time id.
        time_width: sinusoids of one time id; even.
    """

    width: int
    time_width: int


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The architecture of a U-Net. Defaults are SD v1's.

    Without a `context_width` there is no text: transformer layers have self-attention and feed-forward only.
    """

    down: tuple[Stage, ...]
    mid: Stage | None
    up: tuple[Stage, ...]
    stem_width: int = 320
    in_channels: int = 4
    out_channels: int = 4
    context_width: int | None = 768
    added: AddedEmbedding | None = None
    linear_projection: bool = False
    upcast_attention: bool = False
    norm_groups: int = 32
    norm_epsilon: float = 1e-5
    flip_sin_to_cos: bool = True
    freq_shift: float = 0.0
    sample_size: int | None = 64

    def stages(self) -> dict[str, Stage]:
        """Every stage under its Diffusers name, in the order of the forward pass."""
        stages = {f"down_blocks.{i}": stage for i, stage in enumerate(self.down)}
        if self.mid is not None:
            stages["mid_block"] = self.mid
        return stages | {f"up_blocks.{i}": stage for i, stage in enumerate(self.up)}

    @property
    def downscale(self) -> int:
        """How many times higher and wider the input is than the smallest feature map: what both must divide by."""
        return 2 ** sum(stage.resampler for stage in self.down)


@dataclasses.dataclass(frozen=True)
class Skip:
    """A feature map on the skip stack: the block it comes from, its channels, and how often it was halved."""

    source: str
    width: int
    level: int


@dataclasses.dataclass(frozen=True)
class Block:
    """One row of the table: a residual block, a resampler, or one layer of a transformer.

    Attributes:
        stage, leaf: `down_blocks.1`, `resnets.0`.
        kind: a key of `KINDS`.
        in_width: channels that arrive from the block before, without the skip.
        out_width: channels that leave.
        level: how often the input was halved.
        heads: attention heads (attention only).
        layer, depth: the number of this layer, and how many its transformer has (attention only).
        pops: whether it takes a skip.
        skip: the skip that it takes; None where the stack is empty.
        pushes: whether its output is put on the skip stack.
    """

    stage: str
    leaf: str
    kind: str
    in_width: int
    out_width: int
    level: int
    heads: int = 0
    layer: int = 0
    depth: int = 1
    pops: bool = False
    skip: Skip | None = None
    pushes: bool = False

    @property
    def block(self) -> str:
        """Diffusers' name of the block, `down_blocks.1.resnets.0`; all layers of a transformer share it."""
        return f"{self.stage}.{self.leaf}"

    @property
    def name(self) -> str:
        """Diffusers' name of this row, `down_blocks.1.attentions.0.transformer_blocks.0` or its block's."""
        return f"{self.block}.transformer_blocks.{self.layer}" if self.kind == "attention" else self.block


def block_table(config: UNetConfig) -> tuple[tuple[Block, ...], tuple[Skip, ...]]:
    """Lists the blocks in the order in which they run.

    The widths of an up block follow from the skip that it finds on the stack, so a removed block needs no formula.

    Returns:
        the rows, and the skips that nothing took (none in a U-Net that works).
    """
    rows: list[Block] = []
    skips = [Skip("conv_in", config.stem_width, 0)]
    width, level = config.stem_width, 0

    def push() -> None:
        rows[-1] = dataclasses.replace(rows[-1], pushes=True)
        skips.append(Skip(rows[-1].block, width, level))

    for name, stage in config.stages().items():
        side = name.split("_")[0]
        for j, pair in enumerate(stage.pairs):
            if "R" in pair:
                skip = skips.pop() if side == "up" and skips else None
                pops = side == "up"
                rows.append(Block(name, f"resnets.{j}", "resnet", width, stage.width, level, pops=pops, skip=skip))
                width = stage.width
            rows += [
                Block(name, f"attentions.{j}", "attention", width, stage.width, level, stage.heads, k, stage.depths[j])
                for k in range(stage.depths[j])
            ]
            if "R" in pair and side == "down":
                push()
        if stage.resampler:
            kind = f"{side}sampler"
            rows.append(Block(name, f"{kind}s.0", kind, width, stage.width, level))
            width, level = stage.width, level + (1 if side == "down" else -1)
            if side == "down":
                push()
    return tuple(rows), tuple(skips)


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
"""Kind of a row -> its module, and that module's settings."""


def flax_name(name: str) -> str:
    """`resnets.0` -> `resnets_0`, as Diffusers' Flax checkpoints write one level of a name."""
    return name.replace(".", "_")


class UNetStage(nn.Module):
    """Runs the rows of one stage. `skips` is the stack as a tuple; the new one is returned."""

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
                continue  # a transformer runs as a whole, with its last layer
            if row.pops:
                x, skips = jnp.concatenate([x, skips[-1]], axis=-1), skips[:-1]
            block, settings = KINDS[row.kind]
            more = {"attention": self.attention} if row.kind == "attention" else {}
            block = rematerialised(block, row.kind, self.remat)
            x = block(**settings(row, self.config), **more, dtype=self.dtype, name=flax_name(row.leaf))(
                x, *inputs[row.kind]
            )
            if row.pushes:
                skips = (*skips, x)
        return x, skips


class UNet(nn.Module):
    """Predicts noise (or velocity) from a noisy latent, its timestep and what it is conditioned on.

    With the collection `FEATURES` mutable, the output of every stage is sown under its name (`down_blocks.0`), and
    those of every transformer's `attn1` and `proj_out`; `captured` lists them. Otherwise nothing is kept.

    `attention` is a key of `attention.IMPLEMENTATIONS`, `remat` one of `remat.POLICIES`.
    """

    config: UNetConfig
    dtype: jnp.dtype = jnp.float32
    attention: str = "auto"
    remat: str = "none"

    @nn.compact
    def __call__(self, latents: jax.Array, timesteps: jax.Array, conditioning: Conditioning) -> jax.Array:
        """`latents` [B, H, W, in_channels], `timesteps` [B], `conditioning` as `example_inputs` has it.

        Returns:
            [B, H, W, out_channels] in `dtype`. H and W must be multiples of `config.downscale`.
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
            stage_rows = tuple(row for row in rows if row.stage == name)
            stage = stage_class(stage_rows, cfg, self.dtype, self.attention, self.remat, name=flax_name(name))
            x, skips = stage(x, skips, temb, context)
            self.sow(FEATURES, f"{name}_features", x)
        assert not skips
        x = GroupNorm(cfg.norm_groups, epsilon=cfg.norm_epsilon, result=self.dtype, name="conv_norm_out")(x)
        return conv(cfg.out_channels, 3, "conv_out", self.dtype)(nn.silu(x))


def captured(variables: Mapping[str, Any]) -> dict[str, jax.Array]:
    """The features that `UNet.apply(..., mutable=[FEATURES])` sowed, under Diffusers' names.

    Stage outputs are `down_blocks.0`, projections `down_blocks.2.attentions.1.proj_out`, each [B, H, W, C]; what
    self-attention adds is `down_blocks.2.attentions.1.transformer_blocks.0.attn1`, [B, H * W, C].
    """
    features = {}
    for path, leaf in jax.tree_util.tree_leaves_with_path(variables[FEATURES]):
        names = [entry.key for entry in path if isinstance(entry, jax.tree_util.DictKey)]
        features[".".join(dotted(name) for name in names).removesuffix("_features")] = leaf
    return features


def dotted(name: str) -> str:
    """`down_blocks_1` -> `down_blocks.1`; other names, `linear_1` and `mid_block` among them, stay as they are."""
    head, _, number = name.rpartition("_")
    listed = head in ("down_blocks", "up_blocks", "resnets", "attentions", "downsamplers", "upsamplers")
    listed = listed or head in ("transformer_blocks", "net", "to_out")
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
    """The parameters of a U-Net as nested `jax.ShapeDtypeStruct`, from shapes alone."""
    return parameter_shapes_of(UNet(config), *example_inputs(config, size=config.downscale))
