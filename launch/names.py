"""Names on the command line: settings, flags and config files, with hints for misspelt ones."""

import ast
import dataclasses
import difflib
import re
import typing
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path

from bksdm_jax.base.errors import InputError, listed

ROOT = Path(__file__).resolve().parent.parent
"""The folder in which `configs/` is installed."""
_MOST_SHOWN = 160
_OVERRIDE = re.compile(r"--?(?:no)?config\.([^=]*)")


def setting_names(cls: type, prefix: str = "") -> Iterator[tuple[str, bool]]:
    """The keys of a settings dataclass, `group.key` for nested ones, and whether each is a group."""
    types = typing.get_type_hints(cls)
    for field in dataclasses.fields(cls):
        nested = dataclasses.is_dataclass(types[field.name])
        yield f"{prefix}{field.name}", nested
        if nested:
            yield from setting_names(types[field.name], f"{prefix}{field.name}.")


def closest(name: str, known: Collection[str]) -> list[str]:
    """What a misspelt name may stand for: the known names with its last part, or the most similar; at most ten."""
    last = name.rpartition(".")[2]

    def likeness(one: str) -> float:
        whole = difflib.SequenceMatcher(None, one, name).ratio()
        return max(whole, difflib.SequenceMatcher(None, one.rpartition(".")[2], last).ratio())

    same = [one for one in known if one.rpartition(".")[2] == last]
    if same:
        fewest = min(one.count(".") for one in same)
        return [one for one in same if one.count(".") == fewest][:10]
    best = max(known, key=likeness, default="")
    return [best] if best and likeness(best) >= 0.6 else []


def unknown_setting(key: str, cls: type) -> str:
    """Hint for a key that the settings don't have; empty if they have it."""
    groups = dict(setting_names(cls))
    if key in groups and not groups[key]:
        return ""
    single = [name for name, is_group in groups.items() if not is_group]
    if key in groups:
        inner = [name for name in single if name.startswith(f"{key}.")]
        return f"a group of settings; expected one of {listed(inner, key)}"
    found = closest(key, single)
    if found:
        return f"no such setting; did you mean {' or '.join(f'--config.{name}' for name in found)}?"
    return f"no such setting; known: {listed(single, key)}; --help explains all"


def require_settings_exist(argv: Sequence[str], cls: type) -> None:
    """Raises `InputError` for the first `--config.KEY` whose key the settings don't have."""
    for argument in argv:
        override = _OVERRIDE.match(argument)
        if override and (problem := unknown_setting(override[1], cls)):
            raise InputError(f"{argument[:_MOST_SHOWN]}: {problem}")


def unknown_flag(name: str, own: Collection[str], cls: type) -> InputError:
    """The error for a flag that doesn't exist."""
    settings = [f"config.{key}" for key, is_group in setting_names(cls) if not is_group]
    found = closest(name, [*own, *settings])
    hint = f"did you mean {' or '.join(f'--{one}' for one in found)}?" if found else "--help lists all"
    return InputError(f"--{name}: no such flag; {hint}")


def own_config(manual: str) -> str:
    """The config file of a program: that of the examples in its manual; empty if there are none."""
    found = re.search(r"--config=(configs/\w+\.py)", manual)
    return found[1] if found else ""


def program_of(manual: str) -> str:
    """The program that the first example of a program's or config file's manual runs; empty if there is none."""
    found = re.search(r"python -m (launch\.\w+)", manual)
    return found[1] if found else ""


def docstring(path: Path) -> str:
    """A module's docstring, without running it; empty if it has none."""
    try:
        return ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or ""
    except (OSError, SyntaxError, ValueError):
        return ""


def find_config(given: str, manual: str) -> tuple[Path, str]:
    """The config file that `--config=PATH:variant,variant` names, and its variants.

    A path that doesn't exist here is looked for among the installed configs.

    Raises:
        InputError: there is no such file, or it is another program's.
    """
    name, _, variants = given.partition(":")
    path, own = Path(name).expanduser(), own_config(manual)
    if not name:
        raise InputError(f"--config: missing; give --config={own}")
    for place in (path, ROOT / path):
        if place.is_file():
            other = program_of(docstring(place))
            if other and own_config(docstring(ROOT / f"{other.replace('.', '/')}.py")) not in (own, ""):
                raise InputError(f"--config: {name} is a config of {other}; {program_of(manual)} takes --config={own}")
            return place, variants
    known = [f"configs/{file.name}" for file in sorted((ROOT / "configs").glob("[a-z]*.py"))]
    found = difflib.get_close_matches(f"configs/{path.name}", known, n=1, cutoff=0.85)
    hint = f"did you mean {found[0]}?" if found else f"{program_of(manual)} takes --config={own}"
    raise InputError(f"--config: no such file {name}; {hint}")
