"""The text of `--help`: what a program does, its examples, variants and settings."""

import dataclasses
import inspect
import re
import textwrap
import typing
from collections.abc import Iterator, Mapping
from typing import Any

from ml_collections import config_dict

from bksdm_jax.base.errors import shown

_WIDTH = 100
_INDENT = 32
_ENTRY = re.compile(r" {4}(\w+(?:, \w+)*): (.*)")
_ELSEWHERE = re.compile(r"\b(see|as in|as of|as) `[A-Z]\w+`")
FLAGS = {"workdir": "the folder for all output", "help": "print this"}


def explanations(cls: type) -> dict[str, str]:
    """Field -> its explanation in the `Attributes` of a dataclass, or of the one that it is inherited from.

    An entry that only refers to another class doesn't replace an inherited explanation.
    """
    found: dict[str, str] = {}
    for base in reversed(cls.__mro__):
        for name, text in _entries(inspect.cleandoc(vars(base).get("__doc__") or "")):
            if not (name in found and _ELSEWHERE.search(text)):
                found[name] = text
    return found


def _entries(docstring: str) -> Iterator[tuple[str, str]]:
    """The names of an `Attributes` section, and the text of each."""
    names, texts = [], []
    for line in [*docstring.partition("Attributes:\n")[2].splitlines(), ""]:
        entry = _ENTRY.fullmatch(line)
        if entry or not line.strip():
            yield from ((name, " ".join(texts)) for name in names)
            names, texts = (entry[1].split(", "), [entry[2]]) if entry else ([], [])
            if not entry:
                return
        else:
            texts.append(line.strip())


def settings(cls: type, config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str, str]]:
    """Key, default and explanation of each setting: those that must be given first, then its own, inherited, groups.

    Before a group comes its name with a dot.
    """
    types, manual = typing.get_type_hints(cls), explanations(cls)
    fields = [field for field in dataclasses.fields(cls) if not dataclasses.is_dataclass(types[field.name])]
    for field in sorted(fields, key=lambda field: (field.default is not dataclasses.MISSING, _depth(cls, field.name))):
        value = config.get(field.name, field.default)
        needed = field.default is dataclasses.MISSING and value in ("", (), dataclasses.MISSING)
        yield f"{prefix}{field.name}", "" if needed else typed(value), manual[field.name]
    for field in dataclasses.fields(cls):
        if field not in fields:
            yield f"{prefix}{field.name}.", "", _summary(types[field.name])
            yield from settings(types[field.name], config.get(field.name, {}), f"{prefix}{field.name}.")


def _depth(cls: type, name: str) -> int:
    """How far up its bases a class has a field from."""
    return next(depth for depth, base in enumerate(cls.__mro__) if name in vars(base).get("__annotations__", {}))


def _summary(cls: type) -> str:
    """The first sentence of a docstring."""
    return re.split(r"(?<=\.)\s", inspect.cleandoc(cls.__doc__ or ""), maxsplit=1)[0]


def typed(value: Any) -> str:
    """A value as it is typed on the command line."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, (tuple, list)):
        return f'"{shown(tuple(value))}"'.replace(", ", ",")
    return value if isinstance(value, str) and value else repr(value).replace("''", '""')


def help_text(
    manual: str, cls: type, config: config_dict.ConfigDict, source: str, variants: str, flags: Mapping[str, str]
) -> str:
    """The text of `--help`.

    Args:
        manual: the program's docstring.
        cls: of its settings.
        config: the settings to print as defaults.
        source: the config file that they are from, with its variants.
        variants: that config file's docstring.
        flags: the program's own, and their explanations.
    """
    lines = []
    for paragraph in inspect.cleandoc(manual).split("\n\n"):
        lines += [*_paragraph(paragraph), ""]
    section = re.search(r"^Variants.*?(?=\n\n|\Z)", inspect.cleandoc(variants), re.MULTILINE | re.DOTALL)
    if section:
        lines += [*_paragraph(section[0]), ""]
    lines += [*_wrap(f"Settings, --config.KEY=VALUE, with the values of {source}:")]
    shared = ""
    for key, value, text in settings(cls, config):
        if key.endswith("."):
            lines += ["", *_wrap(f"  {key[:-1]}: {text}", later="  ")]
        else:
            lines += _row(f"{key}={value}" if value else f"{key}=... (required)", "" if text == shared else text)
        shared = text
    lines += ["", "Flags:"]
    for name, text in flags.items():
        lines += _row(f"--{name}", text)
    return "\n".join(line.rstrip() for line in lines)


def _wrap(text: str, width: int = _WIDTH, later: str = "") -> list[str]:
    """The text in lines, which are broken at spaces only."""
    return textwrap.wrap(text, width, subsequent_indent=later, break_on_hyphens=False)


def _row(head: str, text: str) -> list[str]:
    """A name, and its explanation to the right of it or below."""
    lines = _wrap(text, _WIDTH - _INDENT) or [""]
    heads = _wrap(head, _WIDTH - 2)
    if len(head) < _INDENT - 2:
        return [f"  {head:{_INDENT - 2}}{lines[0]}", *(" " * _INDENT + line for line in lines[1:])]
    return [*(f"  {line}" for line in heads), *(" " * _INDENT + line for line in lines if line)]


def _paragraph(text: str) -> list[str]:
    """Running text is filled anew; commands are broken before flags, and lists between words."""
    lines = text.splitlines()
    if not any(line.startswith(" ") for line in lines):
        return _wrap(text)
    return [part for line in _joined(lines) for part in _fitting(line)]


def _joined(lines: list[str]) -> Iterator[str]:
    """Lines of a list, each with those appended that continue it: indented deeper, or after a backslash."""
    whole = ""
    for line in lines:
        if whole.endswith("\\") or (whole and line.startswith("   ")):
            whole = " ".join((whole.rstrip("\\ "), line.strip()))
            continue
        if whole:
            yield whole
        whole = line
    yield whole


def _fitting(line: str) -> list[str]:
    if len(line) <= _WIDTH:
        return [line]
    indent = " " * (len(line) - len(line.lstrip()))
    if "python -m launch." not in line:
        gap = re.match(r"\s*\S.*?\s{2,}", line)
        later = " " * len(gap[0]) if gap else indent
        return _wrap(line, later=later)
    parts, made = re.split(r"\s+(?=--)", line.strip()), [indent]
    for part in parts:
        if len(made[-1]) + len(part) > _WIDTH - 3:
            made.append(f"{indent}    ")
        made[-1] += f"{part} "
    return [f"{one.rstrip()} \\" for one in made[:-1]] + [made[-1].rstrip()]
