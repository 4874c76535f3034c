"""Devices to compile for: those of this machine, or of a TPU topology that is nowhere near."""

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

_RESERVED = 0.03  # of a chip's memory: the runtime's, and what sheets and transfers take


@dataclasses.dataclass(frozen=True)
class Target:
    """What to compile for.

    Attributes:
        devices: JAX's.
        chip: what they are, where that is known.
        memory: bytes of one that a run may use; None if not known.
    """

    devices: Sequence[Any]
    chip: Chip | None
    memory: float | None


def target_of(topology: str) -> Target:
    """The devices to compile for.

    Those of this machine say what JAX may use of their memory; of others it is all but 3%.

    Args:
        topology: `v4:2x2x4`, a generation and its chips along each axis, or `v4:1x1x1` for one of them; empty: this
            machine's devices.

    Raises:
        InputError: no such topology, or no compiler for it.
    """
    if not topology:
        devices = jax.devices()
        chip, told = chip_of(devices[0].device_kind), devices[0].memory_stats() or {}
        return Target(devices, chip, told.get("bytes_limit") or _usable(chip))
    generation, _, shape = topology.partition(":")
    if generation not in TPUS:
        raise one_of("topology", generation, TPUS)
    if not re.fullmatch(r"[1-9]\d*(x[1-9]\d*){1,2}", shape):
        raise InputError(f"topology: {topology!r}; expected a generation and its chips along each axis, as v4:2x2x4")
    chip = TPUS[generation]
    alone = math.prod(map(int, shape.split("x"))) == 1  # of the smallest topology that there is
    whole = f"{generation}:{'x'.join(['2', '2', *['1'] * (shape.count('x') - 1)])}" if alone else topology
    expect_no_tpu()
    try:
        found = topologies.get_topology_desc(platform="tpu", topology_name=whole, **dict(chip.options))
    except Exception as error:  # JAX and the compiler's library raise many types
        missing = "; the compiler is missing: pip install --editable '.[libtpu]'"
        hint = "" if importlib.util.find_spec("libtpu") else missing
        raise InputError(f"topology: {topology} can't be had ({in_short(error)}){hint}") from error
    return Target(found.devices[:1] if alone else found.devices, chip, _usable(chip))


def _usable(chip: Chip | None) -> float | None:
    return chip.memory * (1 - _RESERVED) if chip else None
