"""Low-rank adapters of kernels: LoRA (Hu et al. 2021) and DoRA (Liu et al. 2024).

An adapter changes one kernel W, [in, out] or [h, w, in, out], to W + scale * down @ up. It is either merged into the
kernel, or applied on the fly: then the module's own weights stay untouched, and gradients can be taken with respect to
the adapters alone.
"""

import contextlib
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from flax import struct

from bksdm_jax.base import trees
from bksdm_jax.models.layers import rows_product
from bksdm_jax.models.traced_once import intercepting


@struct.dataclass
class Adapter:
    """The update of one kernel.

    Attributes:
        down: [in, r], of a convolution [h, w, in, r].
        up: [r, out].
        magnitude: of DoRA: the norms of the changed kernel, 1 along the axes over which they are taken, as in [1, out]
            or [1, 1, in, 1]. None: LoRA.
        scale: alpha / r.
    """

    down: Any
    up: Any
    magnitude: Any = None
    scale: float = struct.field(pytree_node=False, default=1.0)

    @property
    def rank(self) -> int:
        """Rows of `up`."""
        return self.up.shape[0]

    def update(self) -> Any:
        """`scale * down @ up`, in the shape of the kernel."""
        return self.scale * (self.down @ self.up)


_DOWN = "lora_down"  # the name of modules that have no adapter themselves
Adapters = Mapping[str, Adapter]
"""Path of a kernel, such as `mid_block/attentions_0/proj_in/kernel` -> its adapter."""


def merged_kernel(kernel: Any, adapter: Adapter, weight: Any = 1.0) -> Any:
    """The changed kernel, in the shape and dtype of `kernel`; computed in float32.

    LoRA: V = W + weight * update. DoRA, with norms |V| along the axes of its magnitude m: m V / |V|.
    """
    changed = kernel.astype("float32") + weight * adapter.update()
    if adapter.magnitude is not None:
        changed = changed * (adapter.magnitude / _norms(changed, adapter.magnitude))
    return changed.astype(kernel.dtype)


def merge(params: Mapping[str, Any], adapters: Adapters, weight: Any = 1.0) -> dict[str, Any]:
    """A network's nested parameters with changed kernels; the other leaves are shared. All adapters must fit."""
    flat = trees.flatten(params)
    return trees.unflatten(flat | {path: merged_kernel(flat[path], one, weight) for path, one in adapters.items()})


def applied(adapters: Adapters, weight: Any = 1.0) -> contextlib.AbstractContextManager[None]:
    """Within it, a network that is applied computes with the adapters, as if they were merged.

    ```
    with applied(adapters):
        noise = UNet(config).apply({"params": frozen}, latents, timesteps, conditioning)
    ```

    Under `jit`, this belongs inside the compiled function. DoRA's norms are constants for gradients, as in its paper.
    Modules without an adapter are called as ever.
    """
    if not adapters:
        return contextlib.nullcontext()

    def intercept(call: Callable[..., Any], args: Any, kwargs: Any, context: nn.module.InterceptorContext) -> Any:
        module = context.module
        adapter = None
        if context.method_name == "__call__" and isinstance(module, (nn.Dense, nn.Conv)) and module.name != _DOWN:
            adapter = adapters.get("/".join((*module.path, "kernel")))
        return call(*args, **kwargs) if adapter is None else _adapted(module, call, adapter, weight, *args)

    return intercepting(intercept)


def _adapted(module: Any, call: Callable[..., Any], adapter: Adapter, weight: Any, x: jax.Array) -> jax.Array:
    """The output of a dense or convolutional module with its adapter."""
    if adapter.magnitude is None:
        out = call(x)
        return out + _low_rank(module, adapter, weight, x, out.dtype)
    kernel = module.get_variable("params", "kernel")
    changed = kernel.astype(jnp.float32) + weight * adapter.update()
    factors = adapter.magnitude / jax.lax.stop_gradient(_norms(changed, adapter.magnitude))
    flat = factors.reshape(-1)
    if factors.shape[-1] != kernel.shape[-1]:  # of each input channel
        x = x * flat.astype(x.dtype)
        out = call(x)
        return out + _low_rank(module, adapter, weight, x, out.dtype)
    out = call(x)
    bias = module.get_variable("params", "bias").astype(out.dtype) if module.use_bias else jnp.zeros((), out.dtype)
    return (out - bias + _low_rank(module, adapter, weight, x, out.dtype)) * flat.astype(out.dtype) + bias


def _low_rank(module: Any, adapter: Adapter, weight: Any, x: jax.Array, dtype: Any) -> jax.Array:
    """`weight * scale * up(down(x))`; `down` is the module with `rank` outputs, at its stride and padding."""
    down = module.clone(features=adapter.rank, use_bias=False, parent=None, name=_DOWN)
    low = down.apply({"params": {"kernel": adapter.down}}, x).astype(dtype)
    return rows_product(low, adapter.up.astype(dtype)) * jnp.asarray(weight * adapter.scale, dtype)


def _norms(kernel: Any, magnitude: Any) -> Any:
    """Euclidean norms over the axes along which `magnitude` is 1, in float32, or 1 for zeros; these axes are kept."""
    axes = tuple(axis for axis, size in enumerate(magnitude.shape) if size == 1)
    squares = (kernel * kernel).sum(axis=axes, keepdims=True)
    return (squares + (squares == 0).astype(squares.dtype)) ** 0.5
