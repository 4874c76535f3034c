"""Where arrays live: one mesh with the axes `data` and `fsdp` over all devices."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bksdm_jax.base.errors import InputError


def make_mesh(fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices: parameters are split over `fsdp` of them, images over all.

    Raises:
        InputError: `fsdp` doesn't divide the number of devices.
    """
    devices = jax.devices() if devices is None else devices
    if fsdp < 1 or len(devices) % fsdp:
        raise InputError(f"fsdp: {fsdp} doesn't divide the {len(devices)} devices")
    shape = (len(devices) // fsdp, fsdp)
    return jax.make_mesh(shape, ("data", "fsdp"), axis_types=(AxisType.Auto,) * 2, devices=devices)


def replicated(mesh: Mesh) -> NamedSharding:
    """The same on every device."""
    return NamedSharding(mesh, PartitionSpec())


def batch_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays [accumulation, images, ...]: images over all devices."""
    return NamedSharding(mesh, PartitionSpec(None, ("data", "fsdp")))


def parameter_shardings(mesh: Mesh, tree: Any) -> Any:
    """For each leaf: its largest axis that divides by `fsdp` is split over it; small and odd leaves are replicated."""

    def spec(leaf: Any) -> NamedSharding:
        parts = mesh.shape["fsdp"]
        fitting = [axis for axis, size in enumerate(leaf.shape) if size % parts == 0 and size >= parts]
        if parts == 1 or not fitting or np.prod(leaf.shape) < 2**12:
            return replicated(mesh)
        axis = max(fitting, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree.map(spec, tree)


def device_put_global(tree: Any, shardings: Any) -> Any:
    """Arrays that every process has whole, as global ones: each process fills its own devices."""

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: np.asarray(leaf[index]))

    return jax.tree.map(put, tree, shardings)


def own_rows(mesh: Mesh, micro_batch: int) -> list[int]:
    """The positions in each micro-batch of so many images that this process's devices have, ascending."""
    parts = batch_sharding(mesh).addressable_devices_indices_map((1, micro_batch)).values()
    return sorted({row for _, rows in parts for row in range(*rows.indices(micro_batch))})


def gather_to_host(tree: Any) -> Any:
    """Global arrays as numpy's, leaf by leaf; all processes must ask."""

    def gather(leaf: jax.Array) -> np.ndarray:
        return np.asarray(leaf if leaf.is_fully_replicated else multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(gather, tree)


def batch_to_global(mesh: Mesh, batch: Any) -> Any:
    """This process's part of a batch, a pytree of arrays [A, M, ...], as global arrays."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda value: jax.make_array_from_process_local_data(sharding, value), batch)
