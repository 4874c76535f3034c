"""A student beside its teacher as text: cost by stage, and the removal plan."""

from collections.abc import Mapping

from bksdm_jax.analysis.cost import StageCost, unet_cost
from bksdm_jax.pruning.plan import RemovalPlan


def cost_table(plan: RemovalPlan, latent_size: int) -> str:
    """Parameters and THOP multiply-adds by stage, the student's row beside that of the teacher's stage it came from.

    Args:
        plan: teacher and student.
        latent_size: height and width of the latent.
    """
    teacher, student = unet_cost(plan.teacher, latent_size), unet_cost(plan.student, latent_size)
    successor = {_stage(source): _stage(name) for name, source in plan.blocks}
    successor |= {"input": "input", "output": "output"}
    nothing = StageCost(0, 0)
    lines = [
        f"{'teacher stage':<16}{'parameters':>14}{'MMACs':>13}   {'student stage':<16}{'parameters':>14}{'MMACs':>13}"
    ]
    for stage, cost in teacher.items():
        name = successor.get(stage, "-")
        lines.append(_row(stage, cost, name, student.get(name, nothing)))
    lines.append(_row("total", _total(teacher), "", _total(student)))
    whole, left = _total(teacher), _total(student)
    lines.append(
        f"left: {left.parameters / whole.parameters:.1%} of the parameters, {left.macs / whole.macs:.1%} of the MACs "
        f"({latent_size}x{latent_size} latents, THOP's rules)"
    )
    return "\n".join(lines)


def plan_text(plan: RemovalPlan) -> str:
    """What goes, which teacher block each student block is, and the feature pairs."""
    lines = ["removed: " + (", ".join(plan.removed) or "nothing")]
    lines += ["", f"{'student block':<37}teacher block"]
    lines += [f"{student:<37}{source}" for student, source in plan.blocks]
    lines += ["", f"{'feature of the student':<37}feature of the teacher"]
    lines += [f"{pair.student:<37}{pair.teacher}" for pair in plan.features]
    return "\n".join(lines)


def _stage(block: str) -> str:
    """`down_blocks.1.resnets.0` -> `down_blocks.1`; `mid_block.resnets.0` -> `mid_block`."""
    return block.rsplit(".", 2)[0]


def _total(costs: Mapping[str, StageCost]) -> StageCost:
    return StageCost(sum(c.parameters for c in costs.values()), sum(c.macs for c in costs.values()))


def _row(stage: str, cost: StageCost, name: str, ours: StageCost) -> str:
    left = f"{stage:<16}{cost.parameters:>14,}{cost.macs / 1e6:>13,.1f}"
    return f"{left}   {name:<16}{ours.parameters:>14,}{ours.macs / 1e6:>13,.1f}"
