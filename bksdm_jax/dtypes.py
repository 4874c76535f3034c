"""The number formats that networks may compute in."""

import jax.numpy as jnp

from bksdm_jax.errors import one_of

DTYPES = {"float32": jnp.float32, "bfloat16": jnp.bfloat16}


def compute_dtype(name: str) -> jnp.dtype:
    """The format called `name`; an unknown one raises `InputError` with the known ones."""
    if name not in DTYPES:
        raise one_of("dtype", name, DTYPES)
    return DTYPES[name]
