"""From the command line to a config, and errors of that in one line."""

import re
import sys
from collections.abc import Mapping, Sequence
from typing import Any

from absl import flags
from ml_collections import config_dict, config_flags

from bksdm_jax.base.errors import InputError, known_name, shown
from launch.manual import help_text
from launch.names import docstring, find_config, own_config, require_settings_exist, unknown_flag
from launch.values import UnusableTextError

Classes = type | Mapping[str, type]
"""Of a program's settings: one dataclass, or several by the `task` of the config file."""
_HELP = re.compile(r"--?(h|\?|help|helpshort|helpfull|helpxml)")
_TASK = re.compile(r"--?config\.task\b")
_CONFIG = re.compile(r"--?config(?:=(.*))?")


def parse(argv: Sequence[str], manual: str, classes: Classes, own: Mapping[str, str]) -> list[str]:
    """Parses absl's flags, among them the config; prints the manual and exits with status 0 if `--help` is among them.

    Args:
        argv: the command line.
        manual: the program's docstring.
        classes: of its settings.
        own: its flags and their explanations.

    Returns:
        the arguments that aren't flags.

    Raises:
        InputError: a flag, setting, value or config file that can't be used.
    """
    argv = list(argv)
    asked = any(_HELP.fullmatch(argument) for argument in argv[1:])
    place, config = _config_argument(argv)
    cls = class_of(classes)
    if config is not None or asked:
        path, variants = find_config(own_config(manual) if config is None else config, manual)
        named = f"{path}:{variants}" if variants else str(path)
        if not isinstance(classes, type) and (given := next((one for one in argv if _TASK.match(one)), "")):
            raise InputError(f"{given}: the task is the config file's; give another file with --config")
        if asked or not isinstance(classes, type):
            settings = _read_config(named)
            cls = class_of(classes, settings)
        if asked:
            print(help_text(manual, cls, settings, named, docstring(path), own))
            sys.exit(0)
        argv[place] = f"--config={named}"
        early = next((one for one in argv[1:place] if one.startswith(("--config.", "-config."))), "")
        if early:
            raise InputError(f"{early}: given before --config={config}; give --config first")
    require_settings_exist(argv[1:], cls)
    try:
        return flags.FLAGS(argv)
    except flags.UnrecognizedFlagError as error:
        raise unknown_flag(error.flagname, own, cls) from error
    except Exception as error:  # config files and overrides raise many types
        raise InputError(f"{_culprit(error, argv, config)}: {explain(error)}") from error


def _config_argument(argv: list[str]) -> tuple[int, str | None]:
    """The place of `--config=PATH` in the command line, and the path; None: it isn't there.

    A path that is an argument of its own is joined to its flag.
    """
    for i, argument in enumerate(argv):
        if found := _CONFIG.fullmatch(argument):
            if found[1] is None and i + 1 < len(argv):
                return i, argv.pop(i + 1)
            return i, found[1] or ""
    return 0, None


def class_of(classes: Classes, config: Mapping[str, Any] | None = None) -> type:
    """The class of a program's settings: of several, the one of `config`'s `task`, or the first.

    Raises `InputError` for an unknown task.
    """
    if isinstance(classes, type):
        return classes
    first = next(iter(classes))
    return classes[known_name("config", "task", (config or {}).get("task", first), classes)]


def _read_config(named: str) -> config_dict.ConfigDict:
    """The settings as a config file has them."""
    values, argv = flags.FlagValues(), ["config", f"--config={named}"]
    holder = config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        values(argv)
    except Exception as error:  # as in `parse`
        raise InputError(f"--config={named}: {explain(error)}") from error
    return holder.value


def _culprit(error: Exception, argv: Sequence[str], config: str | None) -> str:
    """The argument that an error is about, in up to 160 characters."""
    text = error.args[0] if error.args and isinstance(error.args[0], str) else ""
    if isinstance(error, flags.IllegalFlagValueError) and text.startswith("flag --config."):
        return shown(text.removeprefix("flag ").split(": ")[0])[1:-1]
    missing = re.fullmatch(r"Missing value for flag (\S+)", text)
    if missing:
        return missing[1]
    return f"--config={config}" if config else next((one for one in argv if one.startswith("--config")), "--config")


def explain(error: BaseException) -> str:
    """The root cause of a parsing error of ml_collections or absl, in one line."""
    root, hint = error, ""
    if isinstance(error, flags.Error) and str(error).startswith("Missing value for flag"):
        return "no value; give it after ="
    while cause := root.__cause__ or root.__context__:
        if isinstance(root, UnusableTextError):
            break
        root = cause
        close = re.search(r'Did you mean "(\w+)"', str(root))
        hint = f" (did you mean {close[1]!r}?)" if close else hint
    if isinstance(root, UnusableTextError):
        return _wanted(root, error)
    parts = (root,) if isinstance(root, SyntaxError) else root.args if isinstance(root, ValueError) else root.args[-1:]
    text = " ".join(" ".join(map(str, parts or (root,))).split())
    if isinstance(root, TypeError) and "get_config()" in text:
        return "this config has no variants"
    return f"no key {text!r}{hint}" if isinstance(root, (AttributeError, KeyError)) else text


def _wanted(unusable: UnusableTextError, error: BaseException) -> str:
    """What was expected, with the example as it is typed if the setting's name is known."""
    key = re.match(r"flag --(config\.[^=]*)=", str(error))
    example = f"--{key[1]}={unusable.example}" if key else unusable.example
    return f"expected {unusable.wanted}, such as {example}"


def override(config: config_dict.ConfigDict, entry: str) -> None:
    """Sets one key as the flag `--config.KEY=VALUE` does; raises what the flag's parsing raises.

    `ConfigDict.update_from_flattened_dict` takes values, not text, and would add an unknown key to the config.
    """
    argv, values = ["settings", f"--config.{entry}"], flags.FlagValues()
    config_flags.DEFINE_config_dict("config", config, flag_values=values, sys_argv=argv)
    values(argv)
