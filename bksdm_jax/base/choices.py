"""The dtypes that networks compute in, by name; nothing here imports JAX."""

from bksdm_jax.base.errors import one_of

DTYPES = ("float32", "bfloat16")


def require_dtype(name: str, key: str = "dtype") -> None:
    """Raises `InputError`, with `key`, unless `name` is one of `DTYPES`."""
    if name not in DTYPES:
        raise one_of(key, name, DTYPES)
