"""The cost of a student's stages next to its teacher's, as text."""

from collections.abc import Sequence

from bksdm_jax.cost.counts import NOTHING, Cost, unet_cost
from bksdm_jax.models.unet_table import UNetConfig


def cost_table(teacher: UNetConfig, student: UNetConfig, blocks: Sequence[tuple[str, str]], latent_size: int) -> str:
    """Parameters and THOP multiply-adds by stage, each teacher stage with its student stage.

    Args:
        teacher, student: the two U-Nets.
        blocks: (student block, teacher block) for every remaining block.
        latent_size: height and width of the latents.
    """
    before, after = unet_cost(teacher, latent_size), unet_cost(student, latent_size)
    successor = {_stage(source): _stage(name) for name, source in blocks}
    successor |= {"input": "input", "output": "output"}
    lines = [
        f"{'teacher stage':<16}{'parameters':>14}{'MMACs':>13}   {'student stage':<16}{'parameters':>14}{'MMACs':>13}"
    ]
    for stage, cost in before.items():
        name = successor.get(stage, "-")
        lines.append(_row(stage, cost, name, after.get(name, NOTHING)))
    total, left = sum(before.values(), NOTHING), sum(after.values(), NOTHING)
    lines.append(_row("total", total, "", left))
    lines.append(
        f"left: {left.parameters / total.parameters:.1%} of the parameters, {left.macs / total.macs:.1%} of the MACs "
        f"({latent_size}x{latent_size} latents, THOP's rules)"
    )
    return "\n".join(lines)


def _stage(block: str) -> str:
    """`down_blocks.1.resnets.0` -> `down_blocks.1`; `mid_block.resnets.0` -> `mid_block`."""
    return block.rsplit(".", 2)[0]


def _row(stage: str, cost: Cost, name: str, ours: Cost) -> str:
    left = f"{stage:<16}{cost.parameters:>14,}{cost.macs / 1e6:>13,.1f}"
    return f"{left}   {name:<16}{ours.parameters:>14,}{ours.macs / 1e6:>13,.1f}"
