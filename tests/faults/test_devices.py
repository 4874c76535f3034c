"""A run that goes on with other numbers of devices."""

import csv
from collections.abc import Callable

import numpy as np
import pytest

from tests.faults.training import Training

STEPS = 8
"""Of each part."""


def losses(training: Training) -> np.ndarray:
    with (training.workdir / "metrics.csv").open(newline="") as file:
        return np.array([float(row["loss"]) for row in csv.DictReader(file)])


@pytest.mark.parametrize(
    "parts", [((8, 1), (4, 1), (1, 1), (8, 1)), ((8, 2), (4, 2), (1, 1), (8, 4))], ids=["data", "fsdp"]
)
def test_devices(
    begin: Callable[..., Training], figure: Callable[[str], None], parts: tuple[tuple[int, int], ...]
) -> None:
    """Each part begins with what the one before saved; the examples are the same, and the losses nearly."""
    training, steps = begin("moved", batch_size=8), len(parts) * STEPS
    undisturbed = begin("undisturbed", batch_size=8).finish(steps, devices=parts[0][0], fsdp=parts[0][1])
    for number, (devices, fsdp) in enumerate(parts):
        saved = training.digest(number * STEPS) if number else None
        training.finish((number + 1) * STEPS, devices=devices, fsdp=fsdp)
        (*_, begun) = [line for line in training.notes() if "begun" in line]
        assert begun["begun"] == number * STEPS
        assert saved in (None, begun["state"])
    names = [[one.trained_on()[step][0] for step in range(1, steps + 1)] for one in (training, undisturbed)]
    assert names[0] == names[1]
    found, expected = losses(training), losses(undisturbed)
    assert len(found) == len(expected) == steps
    error = np.abs(found / expected - 1).max()
    figure(
        f"devices {' -> '.join(f'{devices} (fsdp {fsdp})' for devices, fsdp in parts)}: {steps} steps, same examples, "
        f"{len(parts) - 1} states restored bit for bit, losses within {error:.1e}"
    )
    assert error < 1e-5
