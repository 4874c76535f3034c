"""DreamBooth's dataset: photographs of each subject in a folder of its name, and the file of classes and prompts."""

import dataclasses
import re
from collections.abc import Collection, Mapping
from pathlib import Path

from bksdm_jax.base.errors import InputError, known_name, shown
from bksdm_jax.base.files import read_text
from bksdm_jax.base.paths import local_path
from bksdm_jax.data.decode import ENDINGS

FILE = "prompts_and_classes.txt"
_MOST_BYTES = 2**20
_HEADER = "subject_name,class"
_NAME = r"\w[\w.-]{0,99}"  # of a folder
_BETWEEN = re.compile(r"(?:\s|,|#[^\n]*)*")
_PROMPT = re.compile(
    r"""(?:'((?:[^'\\\n]|\\.)*)'|"((?:[^"\\\n]|\\.)*)")\s*\.\s*format\s*\(\s*unique_token\s*,\s*class_token\s*,?\s*\)"""
)
_EXPECTED = "'... {0} {1} ...'.format(unique_token, class_token)"
_TOKEN, _CLASS = "{0}", "{1}"


@dataclasses.dataclass(frozen=True)
class DreamBooth:
    """The dataset.

    Attributes:
        folder: of the subjects' folders.
        classes: subject -> class, such as `dog`, in the file's order.
        objects, living: prompts of objects and of living subjects, with `{0}` for the token and `{1}` for the class.
    """

    folder: Path
    classes: Mapping[str, str]
    objects: tuple[str, ...]
    living: tuple[str, ...]

    def photographs(self, subject: str) -> Path:
        """The subject's folder; raises `InputError` if there is no such subject, or it has no images."""
        folder = self.folder / known_name("config", "subject", subject, self.classes)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder; expected the photographs of {subject}, which {FILE} names")
        if not any(path.suffix.lower() in ENDINGS for path in folder.iterdir()):
            raise InputError(f"{folder}: no images ({', '.join(ENDINGS)}); expected the photographs of {subject}")
        return folder

    def prompts(self, subject: str, token: str, living: Collection[str]) -> list[str]:
        """The prompts of a subject with the word `token`; those of `living` are for classes in this list."""
        values = {_TOKEN: token, _CLASS: self.classes[subject]}
        chosen = self.living if self.classes[subject] in living else self.objects
        return [re.sub(r"\{[01]\}", lambda found: values[found[0]], prompt) for prompt in chosen]


def read_dreambooth(folder: str | Path) -> DreamBooth:
    """Reads `FILE` in the dataset's folder, as data: a table of classes, and two lists of prompts written in Python.

    Raises:
        InputError: the file is missing, or a line of it isn't what is expected there.
    """
    place = local_path("dataset", folder)
    path = place / FILE
    if not path.is_file():
        raise InputError(f"dataset: {place} has no {FILE}; give the folder dataset/ of github.com/google/dreambooth")
    text = re.sub(r"\r\n?", "\n", read_text(path, _MOST_BYTES))
    classes, end = _classes(path, text)
    lists: dict[str, tuple[str, ...]] = {}
    while (start := text.find("[", end)) >= 0:
        kind = _kind(path, text, end, start)
        if kind in lists:
            raise InputError(f"{_at(path, text, start)}: a second list of {kind} prompts; expected one")
        lists[kind], end = _prompts(path, text, start + 1)
    for kind in ("object", "live"):
        if kind not in lists:
            raise InputError(f"{path}: no list of {kind} prompts; expected a heading with {kind!r} and [{_EXPECTED}, ]")
    return DreamBooth(place, classes, lists["object"], lists["live"])


def _classes(path: Path, text: str) -> tuple[dict[str, str], int]:
    """Subject -> class, and where the table ends: at the first empty line below a row."""
    header = re.search(r"^[ \t]*subject_name[ \t]*,[ \t]*class[ \t]*$", text, re.MULTILINE)
    if not header:
        raise InputError(f"{path}: no line {_HEADER!r}; expected it above a line NAME,CLASS for each subject")
    classes, end = {}, header.end()
    for row in re.finditer(r"\n(.*)", text[end:]):
        name, comma, kind = (part.strip() for part in row[1].partition(","))
        if not name and not comma:
            if classes:
                break
            continue
        where = _at(path, text, end + row.start(1))
        if not re.fullmatch(_NAME, name) or not re.fullmatch(r"\w[\w -]*", kind):
            raise InputError(f"{where}: {shown(row[1])}; expected NAME,CLASS of a subject")
        if name in classes:
            raise InputError(f"{where}: {name} is in it twice; expected each subject once")
        classes[name] = kind
    if not classes:
        raise InputError(f"{path}: no rows below {_HEADER!r}; expected NAME,CLASS for each subject")
    return classes, end + row.end()


def _kind(path: Path, text: str, begin: int, start: int) -> str:
    """What the heading above a list, or the list's name, says of it."""
    above = [line for line in text[begin:start].lower().splitlines() if line.strip()]
    for line in reversed(above):
        for kind in ("live", "object"):
            if kind in line:
                return kind
    raise InputError(f"{_at(path, text, start)}: a list without a heading; expected 'Object' or 'Live' above it")


def _prompts(path: Path, text: str, begin: int) -> tuple[tuple[str, ...], int]:
    """The prompts of a list, and where it ends; `begin` is behind its bracket."""
    found, place = [], begin
    while True:
        place = _BETWEEN.match(text, place).end()  # type: ignore[union-attr]  # also matches nothing
        if text.startswith("]", place):
            break
        entry, where = _PROMPT.match(text, place), _at(path, text, place)
        if not entry:
            rest = text[place:].partition("\n")[0]
            raise InputError(f"{where}: {shown(rest) if rest else 'the file ends'}; expected {_EXPECTED} or ]")
        prompt = re.sub(r"\\(.)", r"\1", entry[1] if entry[1] is not None else entry[2])
        if sorted(re.findall(r"\{[^{}]*\}|[{}]", prompt)) != [_TOKEN, _CLASS]:
            raise InputError(f"{where}: {shown(prompt)}; expected {{0}} and {{1}} in it once each")
        found.append(prompt)
        place = entry.end()
    if not found:
        raise InputError(f"{_at(path, text, begin)}: a list without prompts; expected {_EXPECTED}")
    return tuple(found), place + 1


def _at(path: Path, text: str, place: int) -> str:
    number = text.count("\n", 0, place) + 1
    return f"{path}: line {number}"
