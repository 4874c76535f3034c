"""The removal plan: which blocks a student keeps, and which teacher block each comes from.

The student's architecture, its initial weights and the feature pairs of distillation all derive from this plan.
"""

import dataclasses
import re
from collections.abc import Iterator, Sequence
from typing import Any

from bksdm_jax.base.errors import InputError, listed, nearest, shown
from bksdm_jax.models.unet_table import Block, Stage, UNetConfig, block_table
from bksdm_jax.pruning.presets import PRESETS

INTERPOLATE = ":interpolate"
"""After the name of a ResNet: it is removed, and an interpolation along the channels stands for it."""
_LONGEST_NAME = 80
_STAND_IN = "interpolation"
_BLOCK = re.compile(r"(down_blocks|up_blocks|mid_block)\b")


@dataclasses.dataclass(frozen=True)
class FeaturePair:
    """Two feature maps of the same shape, named as in `unet.captured`: `down_blocks.0`, `...attentions.1.proj_out`."""

    teacher: str
    student: str


@dataclasses.dataclass(frozen=True)
class RemovalPlan:
    """A teacher with some of its blocks removed.

    Attributes:
        teacher, student: the two architectures; the student's blocks are renumbered as Diffusers would.
        removed: the requested names, in the teacher's numbering.
        blocks: (student block, teacher block) for every remaining block, in the order of the forward pass; a block
            that an interpolation stands for doesn't remain.
        layers: the same for every remaining transformer layer.
        features: the pairs of feature distillation, in the order of the forward pass.
    """

    teacher: UNetConfig
    student: UNetConfig
    removed: tuple[str, ...]
    blocks: tuple[tuple[str, str], ...]
    layers: tuple[tuple[str, str], ...]
    features: tuple[FeaturePair, ...]

    def to_json(self) -> dict[str, Any]:
        """The plan as plain data, to be stored with the student; with `layers` if the teacher `is_deep`."""
        return {
            "removed": list(self.removed),
            "blocks": dict(self.blocks),
            **({"layers": dict(self.layers)} if self.is_deep else {}),
            "features": [dataclasses.asdict(pair) for pair in self.features],
        }

    @property
    def is_deep(self) -> bool:
        """Whether a transformer of the teacher has more than one layer."""
        return any(depth > 1 for stage in self.teacher.stages().values() for depth in stage.depths)


def removed_blocks(student: str) -> tuple[str, ...]:
    """The removed blocks of a student: those of a preset, or a comma-separated list.

    Raises:
        InputError: `student` is empty, lists a preset beside other names, or a name that no U-Net has.
    """
    student = student.strip()
    if student in PRESETS:
        return PRESETS[student].removed
    names = tuple(name.strip() for name in student.split(",") if name.strip())
    if not names:
        raise InputError(f"student: empty; expected a preset ({', '.join(PRESETS)}) or a list of removed blocks")
    if presets := [name for name in names if name in PRESETS]:
        raise InputError(f"student: {student!r} combines {presets[0]} with other names; give one preset, or blocks")
    for name in names:
        if not _BLOCK.match(name):
            hint = nearest(name[:_LONGEST_NAME], PRESETS)
            raise InputError(
                f"student: {shown(name)} is neither a preset nor a block{hint}; presets: {', '.join(PRESETS)}; blocks: "
                "such as mid_block, down_blocks.1, up_blocks.2.attentions.1"
            )
    return names


def plan_removal(teacher: UNetConfig, removed: tuple[str, ...]) -> RemovalPlan:
    """Removes blocks from a teacher.

    Names are Diffusers': a stage (`down_blocks.3`, `mid_block`, `up_blocks.0`), a block (`down_blocks.1.resnets.1`,
    `down_blocks.1.attentions.1`), a resampler (`down_blocks.2.downsamplers.0`) or one layer of a transformer
    (`down_blocks.2.attentions.0.transformer_blocks.5`). Removing a ResNet or downsampler of a down stage also removes
    its skip connection; removing all layers of a transformer removes the transformer. The last remaining down stage and
    up stage lose their resampler, as in every U-Net.

    `down_blocks.1.resnets.0:interpolate` removes only what the ResNet computes: its input, with the skip that it takes,
    is interpolated along the channels to the width of its output (`interpolate_channels`), and no other block changes.

    Raises:
        InputError: an unknown name, or a remaining block would get inputs that don't match its weights.
    """
    _require_known(teacher, removed)
    gone = set(removed)
    if both := [name for name in removed if name + INTERPOLATE in gone]:
        raise InputError(f"student: {both[0]} is listed with and without {INTERPOLATE}; choose one")
    kept: dict[str, tuple[str, Stage, list[str]]] = {}  # student stage -> teacher stage, stage, names of teacher rows
    for side, stages in (("down_blocks", teacher.down), ("up_blocks", teacher.up)):
        survivors = []
        for i, stage in enumerate(stages):
            name = f"{side}.{i}"
            cut, sources = _cut_stage(name, stage, gone)
            if name not in gone and (cut.pairs or cut.resampler):
                survivors.append((name, cut, sources))
        if not survivors:
            raise InputError(f"student: no {side} would be left; keep at least one stage on each side")
        name, cut, sources = survivors[-1]
        sources = [source for source in sources if "samplers" not in source]
        survivors[-1] = (name, dataclasses.replace(cut, resampler=False), sources)
        kept |= {f"{side}.{k}": entry for k, entry in enumerate(survivors)}
    if teacher.mid is not None and "mid_block" not in gone:
        cut, sources = _cut_stage("mid_block", teacher.mid, gone)
        if cut.pairs:
            kept["mid_block"] = ("mid_block", cut, sources)
    down, mid, up = (
        tuple(stage for name, (_, stage, _) in kept.items() if name.startswith(side)) for side in ("down", "mid", "up")
    )
    student = dataclasses.replace(teacher, down=down, mid=mid[0] if mid else None, up=up)
    of_teacher = {row.name: row for row in block_table(teacher)[0]}
    sources = [of_teacher[source] for name in student.stages() for source in kept[name][2]]
    pairs = tuple(zip(block_table(student)[0], sources, strict=True))
    if problem := next(_misfits(teacher, student, pairs), ""):
        raise InputError(f"student: this list of removed blocks isn't valid: {problem}")
    blocks = tuple((row.block, source.block) for row, source in pairs if row.layer == 0 and row.kind != _STAND_IN)
    layers = tuple((row.name, source.name) for row, source in pairs if row.kind == "attention")
    stages = {name: entry[0] for name, entry in kept.items()}
    return RemovalPlan(teacher, student, removed, blocks, layers, _feature_pairs(teacher, student, stages))


def _require_known(teacher: UNetConfig, removed: tuple[str, ...]) -> None:
    rows, _ = block_table(teacher)
    blocks = [*teacher.stages(), *dict.fromkeys(row.block for row in rows)]
    layers = [row.name for row in rows if row.kind == "attention"]
    resnets = {row.block for row in rows if row.kind == "resnet"}
    for name in removed:
        if name.endswith(INTERPOLATE):
            if (resnet := name.removesuffix(INTERPOLATE)) not in resnets:
                hint = nearest(resnet[:_LONGEST_NAME], resnets)
                raise InputError(f"student: {shown(name)}: {INTERPOLATE} needs a ResNet of the teacher{hint}")
        elif name not in blocks and name not in layers:
            hint = nearest(name[:_LONGEST_NAME], [*blocks, *PRESETS, *layers])
            raise InputError(
                f"student: the teacher has no block {shown(name)}{hint}; presets: {', '.join(PRESETS)}; blocks: "
                f"{listed(blocks, name)}; the layers of attentions.j are transformer_blocks.k"
            )


def _cut_stage(name: str, stage: Stage, gone: set[str]) -> tuple[Stage, list[str]]:
    """The rest of a stage, and the names of its remaining rows in the order of the forward pass."""
    pairs, sources = [], []
    for j, pair in enumerate(stage.pairs):
        block = f"{name}.attentions.{j}"
        layers = [f"{block}.transformer_blocks.{k}" for k in range(stage.depths[j])]
        left = [("A", layer) for layer in layers if not {block, layer} & gone]
        resnet = f"{name}.resnets.{j}"
        if pair[0] in "RI" and resnet not in gone:
            left.insert(0, ("I" if resnet + INTERPOLATE in gone else pair[0], resnet))
        sources += [source for _, source in left]
        if left:
            pairs.append("".join(letter for letter, _ in left))
    kind = "downsamplers" if name.startswith("down") else "upsamplers"
    resampler = stage.resampler and f"{name}.{kind}.0" not in gone
    if resampler:
        sources.append(f"{name}.{kind}.0")
    return dataclasses.replace(stage, pairs=tuple(pairs), resampler=resampler), sources


def _misfits(teacher: UNetConfig, student: UNetConfig, pairs: Sequence[tuple[Block, Block]]) -> Iterator[str]:
    """What is wrong with the remaining blocks: inputs that don't match their weights, and wrong resolutions."""
    origin = {row.block: source.block for row, source in pairs} | {"conv_in": "conv_in"}
    rows, unused = block_table(student)
    before = "conv_in"
    for row, source in pairs:
        fits_any = row.kind == _STAND_IN
        if row.in_width != source.in_width and not fits_any:
            yield (
                f"{source.block} would follow {before} and receive {row.in_width} channels; "
                f"its weights expect {source.in_width}"
            )
        if row.pops and row.skip is None:
            expected = source.skip.width if source.skip else 0
            what = "it takes" if fits_any else "its weights expect"
            yield f"{source.block} would have no skip connection; {what} one of {expected} channels"
        elif row.pops and source.skip is not None and row.skip.width != source.skip.width and not fits_any:
            yield (
                f"{source.block} would get the skip of {origin[row.skip.source]} with {row.skip.width} channels; "
                f"its weights expect {source.skip.width}"
            )
        elif row.pops and row.skip.level != row.level:
            yield (
                f"{source.block} works at 1/{_scale(row.level)} of the input's size and would get the skip of "
                f"{origin[row.skip.source]} at 1/{_scale(row.skip.level)}"
            )
        before = source.block
    if unused:
        names = ", ".join(origin[skip.source] for skip in unused)
        yield f"{len(unused)} skip connection(s) would be left without an up block: {names}"
    width, level = _outgoing_shape(rows)
    expected, _ = _outgoing_shape(block_table(teacher)[0])
    if width != expected:
        yield f"conv_norm_out would follow {before} and receive {width} channels; its weights expect {expected}"
    if level != 0:
        yield f"the output would have 1/{2**level} of the input's height and width (it ends after {before})"


def _scale(level: int) -> str:
    return f"{2.0**level:g}"


def _outgoing_shape(rows: Sequence[Block]) -> tuple[int, int]:
    """Channels and downsampling level of the output of the last row."""
    last = rows[-1]
    return last.out_width, last.level + {"downsampler": 1, "upsampler": -1}.get(last.kind, 0)


def _feature_pairs(teacher: UNetConfig, student: UNetConfig, stages: dict[str, str]) -> tuple[FeaturePair, ...]:
    """The paper's pairs: stage outputs of equal shape; where a resampler is removed, the last `proj_out` instead."""
    pairs = []
    for name, stage in student.stages().items():
        source = stages[name]
        theirs = [row for row in block_table(teacher)[0] if row.stage == source]
        ours = [row for row in block_table(student)[0] if row.stage == name]
        lost = teacher.stages()[source].resampler and not stage.resampler
        if lost:
            theirs, ours = ([row for row in rows if row.kind == "attention"] for rows in (theirs, ours))
        if name == "mid_block" or not theirs or not ours or _outgoing_shape(theirs) != _outgoing_shape(ours):
            continue
        last = FeaturePair(f"{theirs[-1].block}.proj_out", f"{ours[-1].block}.proj_out")
        pairs.append(last if lost else FeaturePair(source, name))
    return tuple(pairs)


def plan_text(plan: RemovalPlan) -> str:
    """The removed blocks, the teacher block of each student block, and the feature pairs, as text."""
    lines = ["removed: " + (", ".join(plan.removed) or "nothing")]
    lines += ["", f"{'student block':<37}teacher block"]
    lines += [f"{student:<37}{source}" for student, source in plan.blocks]
    if plan.is_deep:
        lines += ["", f"{'transformer layer of the student':<50}layer of the teacher"]
        lines += [f"{student:<50}{source}" for student, source in plan.layers]
    lines += ["", f"{'feature of the student':<37}feature of the teacher"]
    lines += [f"{pair.student:<37}{pair.teacher}" for pair in plan.features]
    return "\n".join(lines)
