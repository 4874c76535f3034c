"""The commands of README.md as a user pastes them: in order, in one shell, in a fresh clone."""

import dataclasses
import functools
import os
import re
import shlex
import string
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any
from unittest import mock

import launch.command
from tests import binaries
from tests.conftest import ROOT

README = ROOT / "README.md"


@dataclasses.dataclass(frozen=True)
class Command:
    """A command.

    Attributes:
        line: where it begins; 0: within the prose.
        section: the heading above.
        text: as printed, in one line.
        words: as a program gets them, with variables replaced.
        target: the file that its output goes to.
    """

    line: int
    section: str
    text: str
    words: tuple[str, ...]
    target: str = ""

    @property
    def program(self) -> str:
        """`train` of `python -m launch.train`; empty: another command."""
        return self._split()[0]

    @property
    def arguments(self) -> list[str]:
        """The flags of that program."""
        return self._split()[1]

    def _split(self) -> tuple[str, list[str]]:
        for index, word in enumerate(self.words):
            if word.startswith("launch.") and self.words[max(index - 2, 0) : index] in ((), ("python", "-m")):
                own = list(self.words[index + 1 :])
                # The script adds the flag.
                return word.removeprefix("launch."), own + ["--distributed=auto"] * (self.words[0] == "sbatch")
        return "", []


def commands(text: str, values: Mapping[str, str] | None = None) -> list[Command]:
    """The commands in the fenced blocks; `values` take the place of those that the text exports.

    Raises `ValueError` for a variable that no earlier command sets.
    """
    found, variables = [], dict[str, str]()
    for line, section, printed in _printed(text):
        words = _words(printed, variables, f"line {line}")
        if words[0] == "export":
            variables |= dict(word.split("=", 1) for word in words[1:])
            variables |= {name: value for name, value in (values or {}).items() if name in variables}
        target = words[words.index(">") + 1] if ">" in words else ""
        found.append(Command(line, section, printed, words, target))
    return found


def variables(found: list[Command]) -> dict[str, str]:
    """What the commands export."""
    return {
        name: value
        for command in found
        if command.words[0] == "export"
        for name, _, value in (word.partition("=") for word in command.words[1:])
    }


def spans(text: str) -> list[tuple[str, str]]:
    """Section and content of every `code span` of the prose."""
    found = []
    for section, prose in _prose(text).items():
        found += [(section, " ".join(span.split())) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", prose)]
    return found


def inline(text: str) -> list[Command]:
    """The code spans that are commands, or flags of one."""
    values = variables(commands(text))
    starts = ("launch.", "python ", "make ", "--", "export ", "PYTHON=")
    return [
        Command(0, section, span, _words(span, values, f"`{span}`"))
        for section, span in spans(text)
        if span.startswith(starts)
    ]


def parsed(program: str, arguments: list[str]) -> Any:
    """The settings with which `python -m launch.PROGRAM` would begin its work; raises `ValueError` with its error."""
    return _parsed(program, tuple(arguments))


@functools.cache
def _parsed(program: str, arguments: tuple[str, ...]) -> Any:
    converted, real = [], launch.command.to_dataclass

    def convert(cls: type, config: Any, prefix: str = "", **more: Any) -> Any:
        value = real(cls, config, prefix, **more)
        if prefix:
            return value
        converted.append(value)
        raise SystemExit(0)

    if program not in binaries.VERBS:
        raise ValueError(f"launch.{program}: no such program")
    with mock.patch.object(launch.command, "to_dataclass", convert), mock.patch.dict(os.environ):
        ended = binaries.run(program, list(arguments))
    if not converted:
        raise ValueError(ended.errors.strip() or ended.output.strip())
    return converted[0]


def flattened(config: Any) -> dict[str, Any]:
    """Settings by their keys on the command line."""
    found = {}
    for field in dataclasses.fields(config):
        value = getattr(config, field.name)
        nested = flattened(value) if dataclasses.is_dataclass(value) else None
        found |= {field.name: value} if nested is None else {f"{field.name}.{key}": one for key, one in nested.items()}
    return found


def mentioned_files(text: str) -> set[str]:
    """Paths of the repository that prose, links and commands name."""
    linked = set(re.findall(r"\]\(([^)#:]+)\)", text))
    shown = re.findall(r"(?:bksdm_jax|configs|launch|notebooks|tests|\.github)/[\w./-]*", text)
    table = text.partition("| `bksdm_jax/` |")[2].partition("\n\n")[0]
    firsts = re.findall(r"^\| (`[^|]*`) \|", table, re.MULTILINE)
    packages = {f"bksdm_jax/{name}" for first in firsts for name in re.findall(r"`([^`]+)`", first)}
    return linked | {name.rstrip(".") for name in shown} | packages


def _printed(text: str) -> Iterator[tuple[int, str, str]]:
    """Line, section and text of each command in a fenced block without a language."""
    section, language, begun, printed = "", None, 0, ""
    for number, line in enumerate(text.splitlines(), 1):
        if line.startswith("```"):
            language = line[3:] if language is None else None
            if printed:
                raise ValueError(f"line {begun}: {printed!r} doesn't end")
        elif language is None:
            section = line.lstrip("# ") if line.startswith("#") else section
        elif language == "":
            begun = begun if printed else number
            printed += line
            if printed.endswith("\\"):
                printed = printed[:-1]
            elif not _is_open(printed):
                yield begun, section, printed
                printed = ""
            else:
                printed += "\n"


def _is_open(printed: str) -> bool:
    try:
        shlex.split(printed)
    except ValueError:
        return True
    return False


def _words(printed: str, values: Mapping[str, str], where: str) -> tuple[str, ...]:
    try:
        return tuple(shlex.split(string.Template(printed).substitute(values)))
    except KeyError as error:
        raise ValueError(f"{where}: ${error.args[0]} isn't set by an earlier command") from error


def _prose(text: str) -> dict[str, str]:
    """Section -> its text without fenced blocks."""
    found, section = {"": ""}, ""
    for part in re.split(r"^(#+ .*)$", re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL), flags=re.M):
        if part.startswith("#"):
            section = part.lstrip("# ")
        found[section] = found.get(section, "") + part
    return found


def exists(name: str) -> bool:
    """Whether the repository has the file, folder or `*` pattern."""
    return any(ROOT.glob(name)) if "*" in name else (Path(ROOT) / name).exists()
