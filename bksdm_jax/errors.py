"""The one error type that a user is meant to read."""

import difflib
from collections.abc import Iterable


class InputError(ValueError):
    """Something the user gave can't be used.

    The message is one line: which file or key, what was found, what was expected, what to do.
    Binaries print it without a traceback and exit with status 1.
    """


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: `" (did you mean 'steps'?)"`, or the empty string where nothing is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def one_of(what: str, name: str, known: Iterable[str]) -> InputError:
    """The error for an unknown name; it lists the names that exist."""
    known = list(known)
    return InputError(f"{what}: unknown name {name!r}{nearest(name, known)}; known: {', '.join(known)}")


def whole_number(source: str, key: str, value: object, least: int = 1) -> int:
    """`value`, if it is a whole number of at least `least`.

    Raises:
        InputError: naming `source` and `key` otherwise.
    """
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise InputError(f"{source}: {key} is {value!r}; expected a whole number of at least {least}")
    return value
