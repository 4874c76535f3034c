"""The scores of blocks as text."""

from pathlib import Path

from bksdm_jax.base.files import read_json
from bksdm_jax.pruning.criteria import ranked
from bksdm_jax.pruning.targets import CRITERIA


def block_lines(path: Path) -> list[str]:
    """A line for each block in a `blocks.json`, by the ranking of its last criterion, with its rank by every criterion.

    A star marks blocks whose input and output differ in width, so that an interpolation stands for them.
    """
    found = read_json(path)
    known = [name for name in CRITERIA if name in found["scores"]]
    forward = sorted(found["blocks"], key=lambda block: found["blocks"][block]["number"])
    ranks = {name: ranked({block: found["scores"][name][block] for block in forward}) for name in known}
    head = f"{'block':<28}{'parameters':>13}{'MMACs':>12}" + "".join(f"{name:>22}" for name in ranks)
    lines = [head]
    for block in ranks[known[-1]]:
        facts = found["blocks"][block]
        star = "*" if facts["interpolated"] else ""
        line = f"{block + star:<28}{facts['parameters']:>13,}{facts['macs'] / 1e6:>12,.1f}"
        for name, order in ranks.items():
            line += f"{found['scores'][name][block]:>16.4g} ({order.index(block) + 1:>3})"
        lines.append(line)
    lines += [""] if found.get("agreement") else []
    for pair, one in found.get("agreement", {}).items():
        span = f"[{one['low']:.2f}, {one['high']:.2f}]" if one["low"] is not None else ""
        value = "undefined" if one["value"] is None else f"{one['value']:.2f}"
        lines.append(f"rank correlation of {pair}: {value} {span}".rstrip())
    return [*lines, "", "* input and output differ in width: an interpolation along the channels stands for the block"]
