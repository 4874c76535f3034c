"""Named pytrees: nested dictionaries of arrays to flat `{"a/b/c": leaf}` tables, and back."""

import math
from collections.abc import Mapping
from typing import Any

import jax
from flax import traverse_util

from bksdm_jax.base.errors import InputError

_SHOWN, _LONGEST = 3, 80  # names of a kind in an error, characters of one


def flatten(tree: Mapping[str, Any]) -> dict[str, Any]:
    """`{"a": {"b": x}}` -> `{"a/b": x}`; the order of the leaves is kept."""
    return traverse_util.flatten_dict(tree, sep="/")


def unflatten(flat: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of `flatten`."""
    return traverse_util.unflatten_dict(dict(flat), sep="/")


def count(tree: Any) -> int:
    """Number of elements in all leaves of `tree` (arrays or `jax.ShapeDtypeStruct`)."""
    return sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(tree))


def require_same(source: str, found: Mapping[str, tuple[int, ...]], expected: Mapping[str, tuple[int, ...]]) -> None:
    """Raises one `InputError` with the missing, unexpected and mis-shaped names, if two tables of shapes differ.

    It begins with `source`, where `found` was read from, and has the number and the first few names of each kind.
    """
    common = [(name, tuple(found[name]), tuple(shape)) for name, shape in expected.items() if name in found]
    problems = {
        "missing": [name for name in expected if name not in found],
        "unexpected": [name for name in found if name not in expected],
        "mis-shaped": [f"{name} is {shape}, expected {right}" for name, shape, right in common if shape != right],
    }
    lists = [f"{len(names)} {kind}: {_first(names)}" for kind, names in problems.items() if names]
    if lists:
        raise InputError(f"{source}: the weights don't match the config; " + "; ".join(lists))


def _first(names: list[str]) -> str:
    return ", ".join(name[:_LONGEST] for name in names[:_SHOWN]) + (", ..." if len(names) > _SHOWN else "")
