"""Costs as text: a student's stages next to its teacher's, and whole models by network."""

import dataclasses
from collections.abc import Mapping, Sequence

from bksdm_jax.cost.counts import Cost, image_cost, unet_cost
from bksdm_jax.models.unet_table import UNetConfig
from bksdm_jax.pipelines.pipeline import Architectures

_STAGES = "{:<16}{:>14}{:>13}   {:<16}{:>14}{:>13}"
_NETWORKS = "{:<12}{:<14}{:>15}{:>8}{:>14}{:>8}{:>14}{:>8}"


def cost_table(teacher: UNetConfig, student: UNetConfig, blocks: Sequence[tuple[str, str]], latent_size: int) -> str:
    """Parameters and THOP multiply-adds by stage, each teacher stage with its student stage.

    Args:
        teacher, student: the two U-Nets.
        blocks: (student block, teacher block) for every remaining block.
        latent_size: height and width of the latents.
    """
    before, after = unet_cost(teacher, latent_size), unet_cost(student, latent_size)
    successor = {_stage(source): _stage(name) for name, source in blocks} | {"input": "input", "output": "output"}
    lines = [_STAGES.format("teacher stage", "parameters", "MMACs", "student stage", "parameters", "MMACs")]
    for stage, cost in before.items():
        name = successor.get(stage, "-")
        lines.append(_STAGES.format(stage, *_millions(cost), name, *_millions(after.get(name, Cost()))))
    total, left = sum(before.values(), Cost()), sum(after.values(), Cost())
    lines.append(_STAGES.format("total", *_millions(total), "", *_millions(left)))
    lines.append(
        f"left: {left.parameters / total.parameters:.1%} of the parameters, {left.macs / total.macs:.1%} of the MACs "
        f"({latent_size}x{latent_size} latents, THOP's rules)"
    )
    return "\n".join(lines)


def _stage(block: str) -> str:
    """`down_blocks.1.resnets.0` -> `down_blocks.1`; `mid_block.resnets.0` -> `mid_block`."""
    return block.rsplit(".", 2)[0]


def _millions(cost: Cost) -> tuple[str, str]:
    return f"{cost.parameters:,}", f"{cost.macs / 1e6:,.1f}"


def image_table(models: Mapping[str, Architectures], latent_size: int, unet_calls: int) -> str:
    """Parameters and multiply-adds of models by network, with their share of the first model's.

    Args:
        models: name -> networks; the first is the reference.
        latent_size: height and width of the latents.
        unet_calls: U-Net calls per image.
    """
    costs = {name: image_cost(networks, latent_size, unet_calls) for name, networks in models.items()}
    first = next(iter(costs.values()))
    lines = [_NETWORKS.format("", "", "parameters", "left", "GMACs (THOP)", "left", "GMACs (full)", "left")]
    for name, cost in costs.items():
        labels = [name, *[""] * (len(cost) - 1)]
        for label, (part, ours) in zip(labels, cost.items(), strict=True):
            shown = (f"{ours.parameters:,}", _giga(ours.macs), _giga(ours.full_macs))
            pairs = zip(shown, dataclasses.astuple(ours), dataclasses.astuple(first[part]), strict=True)
            cells = [cell for text, a, b in pairs for cell in (text, f"{a / b:.1%}")]
            lines.append(_NETWORKS.format(label, part, *cells).rstrip())
    return "\n".join(lines)


def _giga(count: int) -> str:
    return f"{count / 1e9:,.2f}" if count >= 1e9 else f"{count / 1e9:.5f}"
