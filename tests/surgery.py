"""Blocks taken out of a PyTorch U-Net by hand: the oracle for removal, which knows nothing of our plan."""

import copy

import torch
from diffusers import UNet2DConditionModel


class Nothing(torch.nn.Module):
    """Stands where an attention block was, and passes its input on."""

    def forward(self, x: torch.Tensor, *args: object, **kwargs: object) -> tuple[torch.Tensor]:
        """Diffusers takes the first entry."""
        return (x,)


def operate(teacher: UNet2DConditionModel, *, layers: str, mid: bool, outermost: bool) -> UNet2DConditionModel:
    """The paper's students from section 1 of its tables.

    Args:
        teacher: four stages of two layers.
        layers: `all` keeps every layer; `first and third` keeps one layer down, two up.
        mid: keep the mid block.
        outermost: keep the lowest stage on both sides.
    """
    unet = copy.deepcopy(teacher)
    if layers == "first and third":
        for block in unet.down_blocks:
            drop_pair(block, 1)
        for block in unet.up_blocks:
            drop_pair(block, 1)
    if not mid:
        unet.mid_block = None
    if not outermost:
        unet.down_blocks = unet.down_blocks[:3]
        unet.down_blocks[2].downsamplers = None
        unet.up_blocks = unet.up_blocks[1:]
    return unet


def drop_pair(block: torch.nn.Module, j: int) -> None:
    """Residual block j of a stage goes, and the attention behind it if there is one."""
    for name in ("resnets", "attentions"):
        layers = getattr(block, name, None)
        if layers is not None:
            setattr(block, name, torch.nn.ModuleList(layer for i, layer in enumerate(layers) if i != j))


def drop_layer(unet: UNet2DConditionModel, name: str) -> None:
    """`down_blocks.1.attentions.0.transformer_blocks.1` goes."""
    block, _, k = name.rpartition(".transformer_blocks.")
    del unet.get_submodule(block).transformer_blocks[int(k)]


PAPER = {
    "sd": {"layers": "all", "mid": True, "outermost": True},
    "bk_base": {"layers": "first and third", "mid": True, "outermost": True},
    "bk_small": {"layers": "first and third", "mid": False, "outermost": True},
    "bk_tiny": {"layers": "first and third", "mid": False, "outermost": False},
    "no_mid": {"layers": "all", "mid": False, "outermost": True},
}

ONE_STAGE = "down_blocks.1.resnets.1, down_blocks.1.attentions.1, up_blocks.2.resnets.1, up_blocks.2.attentions.1"
ATTENTIONS = "down_blocks.1.attentions.0,up_blocks.3.attentions.2,mid_block.attentions.0,mid_block.resnets.1"


def one_stage(teacher: UNet2DConditionModel) -> UNet2DConditionModel:
    """`ONE_STAGE` by hand."""
    unet = copy.deepcopy(teacher)
    drop_pair(unet.down_blocks[1], 1)
    drop_pair(unet.up_blocks[2], 1)
    return unet


def attentions(teacher: UNet2DConditionModel) -> UNet2DConditionModel:
    """`ATTENTIONS` by hand: attention blocks alone, and all of the mid block but its first residual block."""
    unet = copy.deepcopy(teacher)
    unet.down_blocks[1].attentions[0] = Nothing()
    unet.up_blocks[3].attentions[2] = Nothing()
    unet.mid_block.attentions = torch.nn.ModuleList()
    unet.mid_block.resnets = unet.mid_block.resnets[:1]
    return unet


# The authors' feature pairs: (teacher, student).
WHOLE_STAGES = [(f"{side}_blocks.{i}",) * 2 for side in ("down", "up") for i in range(4)]
FEATURE_PAIRS = {
    "bk_base": WHOLE_STAGES,
    "bk_small": WHOLE_STAGES,
    "bk_tiny": [
        ("down_blocks.0", "down_blocks.0"),
        ("down_blocks.1", "down_blocks.1"),
        ("down_blocks.2.attentions.1.proj_out", "down_blocks.2.attentions.0.proj_out"),
        ("up_blocks.1", "up_blocks.0"),
        ("up_blocks.2", "up_blocks.1"),
        ("up_blocks.3", "up_blocks.2"),
    ],
}
