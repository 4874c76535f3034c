"""A U-Net as an ordered table of named blocks.

`UNetConfig` says which blocks there are; `block_table` lists them in the order in which they run, each with the widths
that follow from the blocks before it and from the skip stack. Names are Diffusers'.
"""

import dataclasses


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
