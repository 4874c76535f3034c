"""A student beside its teacher as text: cost by stage, and the removal plan."""

from bksdm_jax.analysis.cost import NOTHING, Cost, unet_cost
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
    lines = [
        f"{'teacher stage':<16}{'parameters':>14}{'MMACs':>13}   {'student stage':<16}{'parameters':>14}{'MMACs':>13}"
    ]
    for stage, cost in teacher.items():
        name = successor.get(stage, "-")
        lines.append(_row(stage, cost, name, student.get(name, NOTHING)))
    whole, left = sum(teacher.values(), NOTHING), sum(student.values(), NOTHING)
    lines.append(_row("total", whole, "", left))
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


def _row(stage: str, cost: Cost, name: str, ours: Cost) -> str:
    left = f"{stage:<16}{cost.parameters:>14,}{cost.macs / 1e6:>13,.1f}"
    return f"{left}   {name:<16}{ours.parameters:>14,}{ours.macs / 1e6:>13,.1f}"
