"""One flipped bit in one file of a checkpoint."""

import shutil
from collections.abc import Callable
from pathlib import Path

import jax
from numpy import asarray

from bksdm_jax.training.checkpoints import Checkpoints
from tests.faults.digest import digest
from tests.faults.training import Training
from tests.faults.trials import choices, trials


def flip(path: Path, position: int, bit: int) -> None:
    """In place; again, it is undone."""
    with path.open("r+b") as file:
        file.seek(position)
        (byte,) = file.read(1)
        file.seek(position)
        file.write(bytes([byte ^ 1 << bit]))


def test_bits(begin: Callable[..., Training], figure: Callable[[str], None], tmp_path: Path) -> None:
    """The checkpoint before is used, and restores bit for bit."""
    count, random = trials("bits"), choices("bits")
    training = begin("flipped", checkpoint_every=3).finish(6)
    assert training.steps() == [3, 6]
    expected, kept = training.digest(3), tmp_path / "whole"
    here = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    like = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=here), training.state(3))
    shutil.copytree(training.checkpoints / "6", kept)
    files = sorted(path.relative_to(kept) for path in kept.rglob("*") if path.is_file() and path.stat().st_size)
    sizes = [(kept / path).stat().st_size for path in files]
    hit = set()
    for trial in range(count):
        name = random.choices(files, sizes if trial % 2 else None)[0]
        position, bit = random.randrange(sizes[files.index(name)]), random.randrange(8)
        flip(training.checkpoints / "6" / name, position, bit)
        with Checkpoints(training.checkpoints, 0) as checkpoints:
            assert checkpoints.latest() == 3, (name, position, bit)
            assert digest(checkpoints.restore(like)) == expected
        damaged = training.checkpoints / "6.damaged"
        flip(damaged / name, position, bit)
        assert {path.relative_to(damaged) for path in damaged.rglob("*") if path.is_file()} >= set(files)
        damaged.rename(training.checkpoints / "6")
        hit.add(name)
    with Checkpoints(training.checkpoints, 0) as checkpoints:
        assert checkpoints.latest() == 6  # all flips are undone
    assert asarray(sizes).sum() > 10**6
    figure(f"bits: {count} flipped in {len(hit)} of {len(files)} files, {count} found; the checkpoint before restored")
