"""The devices that a computation is for."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax.sharding import AxisType


def compute_capability() -> tuple[int, ...]:
    """Of the NVIDIA GPU that JAX computes on, such as (9, 0) for Hopper; empty on other devices."""
    device = jax.devices()[0]
    if device.platform != "gpu" or "cuda" not in device.client.platform_version.lower():
        return ()
    return tuple(int(part) for part in device.compute_capability.split("."))


def has_ampere() -> bool:
    """Whether the device is an NVIDIA GPU of the Ampere generation or later."""
    return compute_capability() >= (8, 0)


def by_platform(*operands: jax.Array, default: Callable[..., Any], **branches: Callable[..., Any]) -> Any:
    """`jax.lax.platform_dependent`, but what other platforms compute isn't traced if a mesh of CPUs or TPUs is set.

    Training sets one; tracing both sides of every convolution took a tenth of a small update's time to its first step.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    platform = getattr(device, "platform", "")
    if platform in ("cpu", "tpu"):
        return branches.get(platform, default)(*operands)
    return jax.lax.platform_dependent(*operands, default=default, **branches)


def read_again(x: jax.Array) -> jax.Array:
    """`x`, as a backward pass reads it. On TPUs XLA would otherwise keep its conversion to float32, if the forward pass
    makes that too.
    """
    if x.dtype == jnp.float32:
        return x
    return by_platform(x, tpu=jax.lax.optimization_barrier, default=lambda x: x)


def axes_to_split() -> tuple[tuple[str, ...], int]:
    """The axes of the mesh that XLA partitions over, so not those that a `shard_map` around this splits, and over how
    many devices they go.
    """
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types, strict=True) if kind != AxisType.Manual)
    return axes, math.prod(mesh.shape[name] for name in axes)
