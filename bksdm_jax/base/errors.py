"""The one error type whose messages are for users, and checks that raise it."""

import difflib
import math
import reprlib
import sys
from collections.abc import Iterable


class InputError(ValueError):
    """An input from the user can't be used.

    The message is one line: which file or key, what was found, what was expected, what to do.
    Binaries print it without a traceback and exit with status 1.
    """


class NotFiniteError(InputError):
    """Numbers that a network computed are NaN or infinite: its weights, inputs or training are at fault."""


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 120
_SHORT.maxlist = _SHORT.maxtuple = _SHORT.maxdict = 12
_SHORT.maxlevel = 3  # files may nest deeper than `repr` can follow
_MOST_SHOWN = 160
_MOST_NAMES = 10
_LARGEST = sys.float_info.max


def shown(value: object) -> str:
    """`repr(value)` for an error, in at most 160 characters, whatever a file holds."""
    text = _SHORT.repr(value)
    return text if len(text) <= _MOST_SHOWN else f"{text[: _MOST_SHOWN - 3]}..."


def in_short(error: Exception, most: int = 200) -> str:
    """An error's message in one printable line of at most `most` characters; its type if it has no message."""
    message = (error.strerror if isinstance(error, OSError) else "") or str(error)
    return in_one_line(" ".join(message.split()), most) or type(error).__name__


def in_one_line(text: str, most: int = 200) -> str:
    """The first `most` characters of a text, with `?` for those that a terminal wouldn't show or would obey."""
    return "".join(letter if letter.isprintable() else "?" for letter in text[:most])


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt name: `" (did you mean 'steps'?)"`, or the empty string if no known name is close."""
    close = difflib.get_close_matches(name, list(known), n=1, cutoff=0.6)
    return f" (did you mean {close[0]!r}?)" if close else ""


def listed(known: Iterable[str], name: str = "") -> str:
    """The names for an error: all if there are up to ten, else the ten nearest to `name`, and how many more exist."""
    known = list(known)
    if len(known) <= _MOST_NAMES:
        return ", ".join(known)
    likeness = {one: difflib.SequenceMatcher(None, one, name[:_MOST_SHOWN]).ratio() for one in known}
    close = sorted(known, key=lambda one: -likeness[one])[:_MOST_NAMES]
    return f"{', '.join(close)} ... and {len(known) - _MOST_NAMES} more"


def one_of(what: str, name: str, known: Iterable[str]) -> InputError:
    """The error for an unknown name; it lists names that exist."""
    known = list(known)
    hint = nearest(name[:_MOST_SHOWN], known)
    return InputError(f"{what}: unknown name {shown(name)}{hint}; known: {listed(known, name)}")


def whole_number(source: str, key: str, value: object, least: int = 1, most: float = math.inf) -> int:
    """`value`, if it is a whole number in [least, most]; else raises `InputError` with `source` and `key`."""
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        span = f"of at least {least}" if most == math.inf else f"in [{least}, {most}]"
        raise InputError(f"{source}: {key} is {shown(value)}; expected a whole number {span}")
    return value


def finite_number(source: str, key: str, value: object, least: float = -math.inf, most: float = math.inf) -> float:
    """`value` as a float, if it is finite and in [least, most]; else raises `InputError` with `source` and `key`."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not number or not -_LARGEST <= value <= _LARGEST or not least <= value <= most:  # an int may exceed all floats
        span = f" of at least {least:g}" if least > -math.inf else ""
        span = f" in [{least:g}, {most:g}]" if most < math.inf else span
        raise InputError(f"{source}: {key} is {shown(value)}; expected a finite number{span}")
    return float(value)


def true_or_false(source: str, key: str, value: object) -> bool:
    """`value`, if it is a bool; else raises `InputError` with `source` and `key`."""
    if not isinstance(value, bool):
        raise InputError(f"{source}: {key} is {shown(value)}; expected true or false")
    return value


def known_name(source: str, key: str, value: object, known: Iterable[str]) -> str:
    """`value`, if it is in `known`; else raises `InputError` with `source`, `key` and the known names."""
    known = list(known)
    if not isinstance(value, str):
        raise InputError(f"{source}: {key} is {shown(value)}; known: {listed(known)}")
    if value not in known:
        raise one_of(f"{source}: {key}", value, known)
    return value
