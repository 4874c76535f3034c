"""How arrays are sharded: one mesh with the axes `data` and `fsdp` over all devices."""

from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from bksdm_jax.base.errors import InputError


def make_mesh(fsdp: int = 1, devices: list[jax.Device] | None = None) -> Mesh:
    """A mesh over all devices: images are split over all, parameters over `fsdp`, which must divide their number."""
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


def device_sharding(mesh: Mesh) -> NamedSharding:
    """For arrays [devices]: an element for each."""
    return NamedSharding(mesh, PartitionSpec(("data", "fsdp")))


def per_device(mesh: Mesh, value: int) -> jax.Array:
    """A global int32 array [devices] with `value` on this process's devices."""
    own = np.full((len(mesh.local_devices),), value, np.int32)
    return jax.make_array_from_process_local_data(device_sharding(mesh), own)


def zeros(like: Any, sharding: NamedSharding) -> Any:
    """Global arrays of zeros with the shapes and dtypes of `like`."""

    def make(leaf: Any) -> jax.Array:
        shard = np.zeros(sharding.shard_shape(leaf.shape), leaf.dtype)
        return jax.make_array_from_callback(leaf.shape, sharding, lambda _: shard)

    return jax.tree.map(make, like)


def parameter_shardings(mesh: Mesh, tree: Any) -> Any:
    """Splits each leaf's largest axis that is a multiple of `fsdp`; small and odd leaves are replicated."""

    def spec(leaf: Any) -> NamedSharding:
        shards = mesh.shape["fsdp"]
        fitting = [axis for axis, size in enumerate(leaf.shape) if size % shards == 0 and size >= shards]
        if shards == 1 or not fitting or np.prod(leaf.shape) < 2**12:
            return replicated(mesh)
        axis = max(fitting, key=lambda axis: leaf.shape[axis])
        return NamedSharding(mesh, PartitionSpec(*(None,) * axis, "fsdp"))

    return jax.tree.map(spec, tree)


def device_put_global(tree: Any, shardings: Any) -> Any:
    """Global arrays from arrays that every process has in full; each process fills its own devices."""

    def put(leaf: Any, sharding: NamedSharding) -> jax.Array:
        return jax.make_array_from_callback(leaf.shape, sharding, lambda index: np.asarray(leaf[index]))

    return jax.tree.map(put, tree, shardings)


def own_rows(mesh: Mesh, micro_batch: int) -> list[int]:
    """The positions in a micro-batch of `micro_batch` images that are on this process's devices, ascending."""
    shards = batch_sharding(mesh).addressable_devices_indices_map((1, micro_batch)).values()
    return sorted({row for _, rows in shards for row in range(*rows.indices(micro_batch))})


def gather_to_host(tree: Any) -> Any:
    """Global arrays as numpy arrays, leaf by leaf; every process must call it."""

    def gather(leaf: jax.Array) -> np.ndarray:
        return np.asarray(leaf if leaf.is_fully_replicated else multihost_utils.process_allgather(leaf, tiled=True))

    return jax.tree.map(gather, tree)


def on_host(tree: Any) -> Any | None:
    """Global arrays as numpy arrays, from this process's devices alone; None if they don't have all of them."""

    def whole(leaf: jax.Array) -> np.ndarray | None:
        shards = {str(shard.index): shard for shard in leaf.addressable_shards}
        if sum(shard.data.size for shard in shards.values()) != leaf.size:
            return None
        found = np.empty(leaf.shape, leaf.dtype)
        for shard in shards.values():
            found[shard.index] = shard.data
        return found

    leaves, structure = jax.tree.flatten(tree)
    found = [whole(leaf) for leaf in leaves]
    return None if any(leaf is None for leaf in found) else jax.tree.unflatten(structure, found)


def batch_to_global(mesh: Mesh, batch: Any) -> Any:
    """Global arrays from this process's rows of a batch, a pytree of arrays [A, rows, ...]."""
    sharding = batch_sharding(mesh)
    return jax.tree.map(lambda value: jax.make_array_from_process_local_data(sharding, value), batch)
