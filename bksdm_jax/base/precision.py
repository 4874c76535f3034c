"""The dtypes that networks compute in."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bksdm_jax.base.choices import require_dtype


def compute_dtype(name: str) -> jnp.dtype:
    """The dtype called `name`; raises `InputError` with the known names if it isn't one of them."""
    require_dtype(name)
    return getattr(jnp, name)


def cast_frozen(params: Any, dtype: jnp.dtype) -> Any:
    """Frozen parameters as numpy arrays: matrices and kernels in `dtype`, vectors in float32; copied only if cast."""

    def cast(leaf: Any) -> np.ndarray:
        return np.asarray(leaf).astype(dtype if leaf.ndim > 1 else np.float32, copy=False)

    return jax.tree.map(cast, params)


def exact_products(name: str) -> AbstractContextManager[None]:
    """A context for computing in dtype `name`: GPUs and TPUs would otherwise multiply float32 in shorter formats."""
    return jax.default_matmul_precision("highest") if name == "float32" else nullcontext()
