"""Devices to compile for: those of this machine, or of a TPU topology that isn't attached."""

import dataclasses
import importlib.util
import math
import re
from collections.abc import Sequence
from typing import Any

import jax
from jax.experimental import topologies

from bksdm_jax.base.errors import InputError, in_short, one_of
from bksdm_jax.cost.chips import TPUS, Chip, chip_of
from bksdm_jax.perf.environment import expect_no_tpu

_RESERVED = 0.03  # of a chip's memory, for the runtime, sample grids and transfers


@dataclasses.dataclass(frozen=True)
class Target:
    """Devices to compile for.

    Attributes:
        devices: JAX's.
        chip: their type; None if unknown.
        memory: bytes of one device that a run can use; None if unknown.
    """

    devices: Sequence[Any]
    chip: Chip | None
    memory: float | None


def target_of(topology: str) -> Target:
    """The devices to compile for; usable memory is the runtime's limit on this machine, else all but 3%.

    Args:
        topology: a TPU generation and its chips along each axis, such as `v4:2x2x4`, or `v4:1x1x1` for a single chip;
            empty: this machine's devices.

    Raises:
        InputError: no such topology, or no compiler for it.
    """
    if not topology:
        devices = jax.devices()
        chip, stats = chip_of(devices[0].device_kind), devices[0].memory_stats() or {}
        return Target(devices, chip, stats.get("bytes_limit") or _usable(chip))
    generation, _, shape = topology.partition(":")
    if generation not in TPUS:
        raise one_of("topology", generation, TPUS)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise InputError(f"topology: {topology!r}; expected a generation and its chips along each axis, e.g. v4:2x2x4")
    chip = TPUS[generation]
    single = math.prod(map(int, shape.split("x"))) == 1  # one chip of the smallest topology
    name = f"{generation}:{'x'.join(['2', '2', *['1'] * (shape.count('x') - 1)])}" if single else topology
    expect_no_tpu()
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=name, **dict(chip.options))
    except Exception as error:  # JAX and libtpu raise many types
        missing = "; the compiler is missing: pip install --editable '.[libtpu]'"
        hint = "" if importlib.util.find_spec("libtpu") else missing
        raise InputError(f"topology: {topology} isn't available ({in_short(error)}){hint}") from error
    return Target(found.devices[:1] if single else found.devices, chip, _usable(chip))


def _usable(chip: Chip | None) -> float | None:
    return chip.memory * (1 - _RESERVED) if chip else None
