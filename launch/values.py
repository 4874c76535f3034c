"""Values of settings: read from text of the command line, and checked against the fields of a dataclass."""

import ast
import dataclasses
import re
import typing
from collections.abc import Callable, Collection
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from bksdm_jax.base.errors import InputError, listed, nearest, shown

_SWITCH = {"yes": True, "true": True, "t": True, "1": True, "no": False, "false": False, "f": False, "0": False}
_KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list"}


class UnusableTextError(ValueError):
    """Text that isn't a value of a setting's kind; `wanted` says in words what is, and `example` is one as typed."""

    def __init__(self, wanted: str, example: str) -> None:
        super().__init__(f"expected {wanted}, such as {example}")
        self.wanted, self.example = wanted, example


class _Parser(flags.ArgumentParser):
    """Reads text with a function; takes values as they are."""

    def __init__(self, read: Callable[[str], Any]) -> None:
        self._read = read

    def parse(self, argument: Any) -> Any:
        return self._read(argument) if isinstance(argument, str) else argument


def _switch(text: str) -> bool:
    if (value := _SWITCH.get(text.strip().lower())) is None:
        raise UnusableTextError("yes, no, true or false", "yes")
    return value


def _whole(text: str) -> int:
    try:
        return flags.IntegerParser().convert(text)
    except ValueError as error:
        begin = re.match(r"\s*([+-]?\d+)(?:\D|$)", text)
        raise UnusableTextError("a whole number", _as_whole(text) or (begin[1] if begin else "4")) from error


def _as_whole(text: str) -> str:
    """The whole number that text such as `1e3` stands for; empty if there is none."""
    try:
        number = float(text)
    except ValueError:
        return ""
    return str(int(number)) if number.is_integer() and abs(number) < 1e15 else ""


def _number(text: str) -> float:
    try:
        return flags.FloatParser().convert(text)
    except ValueError as error:
        begin = re.match(r"\s*([+-]?\d+(\.\d+)?)", text)
        raise UnusableTextError("a number", begin[1] if begin else "0.5") from error


def _list(text: str) -> tuple[Any, ...]:
    try:
        value = ast.literal_eval(text.strip())
    except (ValueError, SyntaxError, TypeError, MemoryError, RecursionError):
        value = None
    if isinstance(value, (tuple, list)):
        return tuple(value)
    parts = [part.strip() for part in text.strip("()[] ").split(",")]
    usable = 0 < len(text) <= 60 and all(re.fullmatch(r"[^'\"\s]+", part) for part in parts)
    parts = parts if usable else ["a", "b"]
    if not isinstance(value, (int, float)):
        parts = [f"'{part}'" for part in parts]
    raise UnusableTextError("a list", f'"({",".join(parts)}{"," if len(parts) == 1 else ""})"')


for _kind, _read in {bool: _switch, int: _whole, float: _number, tuple: _list}.items():
    config_flags.register_flag_parser_for_type(_kind, _Parser(_read))


def to_dataclass(
    cls: type, config: config_dict.ConfigDict, prefix: str = "", may_be_empty: Collection[str] = ()
) -> Any:
    """Converts a ConfigDict, possibly nested, to the frozen dataclass `cls`.

    Required keys must not be empty, except those in `may_be_empty`.

    Raises:
        InputError: an unknown key, a required one that is missing or empty, or a value of another type.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}
    types = typing.get_type_hints(cls)
    for key in config:
        if key not in fields:
            raise InputError(f"config.{prefix}{key}: no such key{nearest(key, fields)}; known: {listed(fields, key)}")
    values = {}
    for name, field in fields.items():
        required = field.default is dataclasses.MISSING and field.default_factory is dataclasses.MISSING
        if name not in config:
            if required:
                raise InputError(f"config.{prefix}{name}: missing; give --config.{prefix}{name}=...")
            continue
        value, wanted = config[name], types[name]
        if dataclasses.is_dataclass(wanted):
            if not isinstance(value, config_dict.ConfigDict):
                raise InputError(f"config.{prefix}{name}: {shown(value)}; expected a group of settings")
            values[name] = to_dataclass(wanted, value, f"{prefix}{name}.")
            continue
        if required and name not in may_be_empty and value in ("", None, ()):
            raise InputError(f"config.{prefix}{name}: empty; give --config.{prefix}{name}=...")
        values[name] = _checked(wanted, value, f"config.{prefix}{name}")
    return cls(**values)


def _checked(wanted: Any, value: Any, key: str) -> Any:
    """The value in the type of a field: numbers as floats, lists as tuples."""
    if typing.get_origin(wanted) is tuple and isinstance(value, (list, tuple)):
        inner = typing.get_args(wanted)[0]
        return tuple(_checked(inner, one, key) for one in value)
    kind = typing.get_origin(wanted) or wanted
    if kind is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    if not isinstance(value, kind) or (kind is int and isinstance(value, bool)):
        raise InputError(f"{key}: {shown(value)}; expected {_KINDS[kind]}")
    return value
