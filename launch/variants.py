"""The variants that follow a config file's name: `configs/NAME.py:variant,variant`."""

from collections.abc import Collection, Sequence

from bksdm_jax.base.errors import listed, nearest


def chosen_variants(given: str, known: Collection[str], groups: Sequence[Collection[str]] = ()) -> list[str]:
    """The names in a comma-separated list.

    Raises:
        ValueError: an unknown name, or two of a group, of which only one can be chosen.
    """
    names = [name.strip() for name in given.split(",") if name.strip()]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown variant {name!r}{nearest(name, known)}; known: {listed(known, name)}")
    for group in groups:
        chosen = [name for name in group if name in names]
        if len(chosen) > 1:
            raise ValueError(f"variants {' and '.join(chosen)} exclude each other")
    return names
