"""A U-Net as an ordered table of named blocks.

`UNetConfig` says which blocks a U-Net has; `block_table` lists them in the order of the forward pass, each with the
widths that follow from the preceding blocks and the skip stack. Names are Diffusers'.
"""

import dataclasses


@dataclasses.dataclass(frozen=True)
class Stage:
    """One stage: `down_blocks.i`, `mid_block` or `up_blocks.i`.

    Attributes:
        width: output channels.
        heads: attention heads.
        pairs: entry j has an `R` if `resnets.j` exists, or an `I` if an interpolation stands for it, and an `A` for
            each layer of the transformer `attentions.j`.
        resampler: whether the stage ends with a down- or upsampler.
    """

    width: int
    heads: int
    pairs: tuple[str, ...]
    resampler: bool

    @property
    def depths(self) -> tuple[int, ...]:
        """Layers of `attentions.j` for each j; 0 if it doesn't exist."""
        return tuple(pair.count("A") for pair in self.pairs)


@dataclasses.dataclass(frozen=True)
class AddedEmbedding:
    """The embedding that SDXL adds to the timestep's (Podell et al. 2023, section 2.2).

    Attributes:
        width: of its input: the pooled text plus the sinusoids of all time ids.
        time_width: sinusoids per time id; even.
    """

    width: int
    time_width: int


@dataclasses.dataclass(frozen=True)
class UNetConfig:
    """The architecture of a U-Net. Defaults are SD v1's.

    If `context_width` is None, the U-Net has no text: its transformer layers have no cross-attention.
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

    def in_words(self) -> dict[str, str]:
        """Stage, or name of another property -> what it is, for errors."""
        found = {
            name: f"{stage.width} channels, {stage.heads} heads and blocks {' '.join(stage.pairs)}"
            + (" with a resampler" if stage.resampler else "")
            for name, stage in self.stages().items()
        }
        others = {key: value for key, value in vars(self).items() if key not in ("down", "mid", "up", "added")}
        added = f"{self.added.width} channels" if self.added else "none"
        return found | {"added embedding": added} | {key: str(value) for key, value in others.items()}

    @property
    def downscale(self) -> int:
        """Height and width of the input over those of the smallest feature map."""
        return 2 ** sum(stage.resampler for stage in self.down)


@dataclasses.dataclass(frozen=True)
class Skip:
    """A feature map on the skip stack: its source block, its channels, and how often it was downsampled."""

    source: str
    width: int
    level: int


@dataclasses.dataclass(frozen=True)
class Block:
    """One row of the table: a residual block or its interpolation, a resampler, or one layer of a transformer.

    Attributes:
        stage, leaf: `down_blocks.1`, `resnets.0`.
        kind: a key of `KINDS`.
        in_width: channels from the preceding block, without the skip.
        out_width: output channels.
        level: how often the input was downsampled.
        heads: attention heads (attention only).
        layer, depth: the index of this layer, and the layers of its transformer (attention only).
        pops: whether it takes a skip from the stack.
        skip: that skip; None if the stack is empty.
        pushes: whether its output is pushed on the skip stack.
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
        """Diffusers' name of this row: `down_blocks.1.attentions.0.transformer_blocks.0`, or its block's name."""
        return f"{self.block}.transformer_blocks.{self.layer}" if self.kind == "attention" else self.block


def block_table(config: UNetConfig) -> tuple[tuple[Block, ...], tuple[Skip, ...]]:
    """The blocks in the order of the forward pass, and the skips left on the stack (none in a valid U-Net).

    Up blocks take their widths from the skip stack, so removing blocks needs no formula.
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
            kind = "resnet" if "R" in pair else "interpolation" if "I" in pair else ""
            if kind:
                skip = skips.pop() if side == "up" and skips else None
                pops = side == "up"
                rows.append(Block(name, f"resnets.{j}", kind, width, stage.width, level, pops=pops, skip=skip))
                width = stage.width
            rows += [
                Block(name, f"attentions.{j}", "attention", width, stage.width, level, stage.heads, k, stage.depths[j])
                for k in range(stage.depths[j])
            ]
            if kind and side == "down":
                push()
        if stage.resampler:
            kind = f"{side}sampler"
            rows.append(Block(name, f"{kind}s.0", kind, width, stage.width, level))
            width, level = stage.width, level + (1 if side == "down" else -1)
            if side == "down":
                push()
    return tuple(rows), tuple(skips)


def replaceable(config: UNetConfig) -> tuple[str, ...]:
    """The blocks that an interpolation, or nothing where widths are equal, can stand for: ResNets and transformers."""
    rows, _ = block_table(config)
    return tuple(dict.fromkeys(row.block for row in rows if row.kind in ("resnet", "attention")))


def popped_skips(config: UNetConfig) -> tuple[str, ...]:
    """The ResNets and interpolations that take a skip, in the order of the forward pass."""
    return tuple(row.block for row in block_table(config)[0] if row.pops)


def cuts(config: UNetConfig) -> range:
    """The skips at which `shallow_rows` leaves out blocks, numbered as pushed; 0 is `conv_in`'s output."""
    rows, _ = block_table(config)
    last = sum(row.pushes for row in rows)
    return range(last + (len(shallow_rows(config, last)) < len(rows)))


def shallow_rows(config: UNetConfig, cut: int) -> tuple[Block, ...]:
    """The rows up to the one that pushes skip `cut`, and from the one that pops it."""
    rows, height = [], 1  # skips on the stack
    for row in block_table(config)[0]:
        height -= row.pops
        if height <= cut:
            rows.append(row)
        height += row.pushes
    return tuple(rows)
