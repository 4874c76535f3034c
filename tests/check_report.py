"""Holds a finished demo's report to what it must have: every row, real values, intervals around them.

  python -m tests.check_report DIR

`DIR` is the demo's workdir. Prints one line, or says what is missing and ends with status 1.
"""

import math
import sys
from pathlib import Path
from typing import Any

from bksdm_jax.base.files import read_json
from bksdm_jax.experiments.table import EXPERIMENTS


def problems(workdir: Path) -> list[str]:
    """What is wrong with `report.json` and `report.html`; nothing if all is well."""
    report = read_json(workdir / "report.json")
    found = [row["label"] for row in report["rows"]]
    wanted = [row.label for row in EXPERIMENTS["demo"].rows]
    wrong = [] if found == wanted else [f"rows {found}, expected {wanted}"]
    for row in report["rows"]:
        scores = row["scores"]
        entries = {name: scores[name] for name in ("clip_score_shapes", "fd_clip_shapes")}
        groups = scores["attribute_accuracy"]["groups"]
        entries |= {f"attribute accuracy, {name}": entry for name, entry in groups.items()}
        for name, entry in entries.items():
            if (
                not _real(entry["low"], entry["value"], entry["high"])
                or not entry["low"] <= entry["value"] <= entry["high"]
            ):
                wrong.append(f"{row['label']}: {name} is {entry}")
        if not _real(row["seconds_per_image"]) or row["seconds_per_image"] <= 0:
            wrong.append(f"{row['label']}: seconds per image {row['seconds_per_image']}")
    teacher, student = (report["rows"][i]["unet_parameters"] for i in (0, 1))
    if not 0 < student < teacher:
        wrong.append(f"parameters: student {student}, teacher {teacher}")
    if (workdir / "report.html").stat().st_size < 10_000:
        wrong.append("report.html is too small to hold the pictures")
    return wrong


def _real(*values: Any) -> bool:
    return all(isinstance(value, (int, float)) and math.isfinite(value) for value in values)


if __name__ == "__main__":
    wrong = problems(Path(sys.argv[1]))
    if wrong:
        sys.exit("\n".join(wrong))
    print(f"{sys.argv[1]}: report.json has real values in every row")
